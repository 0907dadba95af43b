"""WebGPU: WGSL for every browser, and for Python and Node where there is a driver.

Code is made for the limits that every WebGPU device offers, not for this machine's: a page is
opened elsewhere.
"""

from __future__ import annotations

from bscompile.targets.base import Target
from bscompile.targets.gpu.kernels import TEMPLATES
from bscompile.targets.webgpu.build import build, prepare
from bscompile.targets.webgpu.hardware import detect, hardware

__all__ = ["TARGET"]

TARGET = Target(
    name="webgpu",
    description="browsers, and GPUs through Vulkan, Metal or Direct3D 12; fixed shapes",
    variants=("",),
    detect=detect,
    hardware=hardware,
    templates=TEMPLATES,
    prepare=prepare,
    build=build,
    loader="webgpu",
)

"""OpenCL devices: kernels from the shared GPU templates, the rest by thread schedules."""

from __future__ import annotations

from bscompile.targets.base import Target
from bscompile.targets.gpu.kernels import TEMPLATES
from bscompile.targets.opencl.build import build, prepare
from bscompile.targets.opencl.hardware import VARIANTS, detect, hardware

__all__ = ["TARGET"]

TARGET = Target(
    name="opencl",
    description="OpenCL devices: GPUs, and CPUs through PoCL; fixed shapes",
    variants=VARIANTS,
    detect=detect,
    hardware=hardware,
    templates=TEMPLATES,
    prepare=prepare,
    build=build,
    loader="opencl",
)

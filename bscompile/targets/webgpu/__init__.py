"""WebGPU: WGSL for every browser, and for Python and Node where there is a driver.

Code is made for the limits that every WebGPU device offers, not for this machine's: a page is
opened elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bscompile.devices import webgpu as webgpu_device
from bscompile.errors import TargetError
from bscompile.targets.base import Target
from bscompile.targets.gpu.kernels import TEMPLATES
from bscompile.targets.webgpu.build import build, prepare
from bscompile.targets.webgpu.hardware import detect, hardware

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

__all__ = ["TARGET"]


def compile_kernel(prim_func: Any, hardware: HardwareSpec) -> Any:
    """One kernel for the tuner; TVM is imported only then."""
    from bscompile.targets.webgpu import kernel

    return kernel.compile_kernel(prim_func, hardware)


def check_kernel(hardware: HardwareSpec) -> None:
    """Look for an adapter.

    Raises:
        TargetError: wgpu is not installed, or there is none.
    """
    webgpu_device.find()


def measured_on() -> str:
    """The adapter's name; empty where there is none."""
    try:
        return webgpu_device.name_of(webgpu_device.find())
    except TargetError:
        return ""


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
    compile_kernel=compile_kernel,
    measured_on=measured_on,
    check_kernel=check_kernel,
    device="",
)

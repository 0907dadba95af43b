"""OpenCL devices: kernels from the shared GPU templates, the rest by thread schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bscompile.devices import opencl as opencl_device
from bscompile.errors import TargetError
from bscompile.targets.base import Target
from bscompile.targets.gpu.kernels import TEMPLATES
from bscompile.targets.opencl.build import build, prepare
from bscompile.targets.opencl.hardware import VARIANTS, detect, hardware

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

__all__ = ["TARGET"]


def compile_kernel(prim_func: Any, hardware: HardwareSpec) -> Any:
    """One kernel for the tuner; TVM is imported only then."""
    from bscompile.targets.opencl import kernel

    return kernel.compile_kernel(prim_func, hardware)


def check_kernel(hardware: HardwareSpec) -> None:
    """Look for the device.

    Raises:
        TargetError: pyopencl or a device is missing, or it is not what is compiled for.
    """
    opencl_device.limits()


def measured_on() -> str:
    """The device's name; empty where there is none."""
    try:
        return opencl_device.limits().name
    except TargetError:
        return ""


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
    compile_kernel=compile_kernel,
    measured_on=measured_on,
    check_kernel=check_kernel,
    device="",
)

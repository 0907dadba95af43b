"""What WebGPU is to the compiler: the limits that every device offers, the rates of a modest one.

The artifact is opened in browsers that are not known when it is built. So kernels stay within the
guaranteed limits, and forms are ranked for an integrated GPU, such as most readers of a page have.
"""

from __future__ import annotations

from typing import Any, Final

from bscompile.devices import webgpu as webgpu_device
from bscompile.devices.webgpu import DEFAULT_LIMITS
from bscompile.errors import TargetError
from bscompile.targets.base import Availability, HardwareSpec
from bscompile.targets.gpu.limits import HALF

ISA: Final = "wgsl"

# An integrated GPU of 1 TFLOP/s that shares the memory of a laptop.
_PROCESSORS, _LANES, _GIGAHERTZ = 8, 64, 1.0
_MEMORY_GBPS = 50.0
_LAUNCH_SECONDS = 5e-6


def hardware(variant: str = "", threads: int | None = None) -> HardwareSpec:
    """The device to compile for.

    Args:
        variant: Always empty.
        threads: Ignored: workgroups use every processor of the device.
    """
    peak = 2 * _LANES * _GIGAHERTZ
    return HardwareSpec(
        name="any WebGPU device",
        isa=ISA,
        features=(),
        cores=_PROCESSORS,
        peak_gflops={"float32": peak, "float16": peak},
        memory_gbps=_MEMORY_GBPS,
        cache_bytes=(1 << 20,),
        cache_gbps=(100.0,),
        vector_bytes=4 * _LANES,
        launch_seconds=_LAUNCH_SECONDS,
        group_threads=DEFAULT_LIMITS["max-compute-invocations-per-workgroup"],
        group_bytes=DEFAULT_LIMITS["max-compute-workgroup-storage-size"],
        extensions={"float16": (HALF,)},  # most devices have it
    )


def tvm_target(spec: HardwareSpec) -> Any:
    """The tvm.target.Target with WebGPU's limits."""
    import tvm

    return tvm.target.Target(
        {
            "kind": "webgpu",
            "max_num_threads": spec.group_threads,
            "max_shared_memory_per_block": spec.group_bytes,
        }
    )


def detect() -> Availability:
    """What this machine has; it compiles for browsers in any case."""
    try:
        adapter = webgpu_device.find()
    except TargetError as error:
        detail = f"{error.message}; browsers run it after bscompile export"
        install = f"{webgpu_device.PACKAGE}, and {webgpu_device.DRIVER}"
        return Availability(compiles=True, runs=False, detail=detail, install=install)
    return Availability(compiles=True, runs=True, detail=webgpu_device.name_of(adapter))

"""What an OpenCL device is to the compiler: its limits as it tells them, its rates estimated."""

from __future__ import annotations

from typing import Any

from bscompile.devices import opencl as opencl_device
from bscompile.errors import TargetError
from bscompile.targets.base import Availability, HardwareSpec
from bscompile.targets.gpu.limits import CPU, HALF, HALF_BITS

ISA = "opencl"
#: Empty is the device of this machine; ``any`` is what every OpenCL device has.
VARIANTS = ("", "any")
# Drivers tell no memory rate and no lanes: typical ones, which rank tiles and forms of a layer.
_GPU_LANES, _CPU_LANES = 64, 8
_GPU_GBPS, _CPU_GBPS = 300.0, 20.0
_LAUNCH_SECONDS = 1e-5
_SHARED_LIMIT = 32 << 10  # more than this in one group leaves a processor too few groups
_THREAD_LIMIT = 256
_NO_HALF = "no half type (cl_khr_fp16): fp16 weights are widened by integers, products are float32"


def hardware(variant: str = "", threads: int | None = None) -> HardwareSpec:
    """The device to compile for.

    Args:
        variant: Empty, or ``any`` for code that no device refuses.
        threads: Ignored: work-groups use every processor of the device.

    Raises:
        TargetError: pyopencl or a device is missing.
    """
    if variant == "any":
        return _ANY
    limits = opencl_device.limits()
    lanes = (limits.vector_floats or _CPU_LANES) if limits.is_cpu else _GPU_LANES
    has_half = "cl_khr_fp16" in limits.extensions
    peak = 2e-3 * lanes * max(limits.megahertz, 1000)
    # Twice as many lanes of half the size are the only hint at a higher rate that drivers give.
    packed = has_half and not limits.is_cpu and limits.vector_halves >= 2 * limits.vector_floats
    return HardwareSpec(
        name=limits.name,
        isa=ISA,
        features=(CPU,) if limits.is_cpu else (),
        extensions={"float16": (HALF if has_half else HALF_BITS,)},
        caveats={} if has_half else {"float16": _NO_HALF},
        cores=limits.processors,
        peak_gflops={"float32": peak, "float16": 2 * peak if packed else peak},
        memory_gbps=_CPU_GBPS if limits.is_cpu else _GPU_GBPS,
        cache_bytes=(limits.cache_bytes or 1 << 20,),
        cache_gbps=(100.0,),
        vector_bytes=4 * lanes,
        launch_seconds=_LAUNCH_SECONDS,
        group_threads=min(limits.threads, *limits.sizes[:2], _THREAD_LIMIT),
        group_bytes=min(limits.shared_bytes, _SHARED_LIMIT),
    )


_ANY = HardwareSpec(
    name="any OpenCL device",
    isa=ISA,
    features=(),
    extensions={"float16": (HALF_BITS,)},
    caveats={"float16": _NO_HALF},
    cores=8,
    peak_gflops={"float32": 2e-3 * _GPU_LANES * 1000, "float16": 2e-3 * _GPU_LANES * 1000},
    memory_gbps=_GPU_GBPS,
    cache_bytes=(1 << 20,),
    cache_gbps=(100.0,),
    vector_bytes=4 * _GPU_LANES,
    launch_seconds=_LAUNCH_SECONDS,
    group_threads=128,  # small GPUs have no larger groups
    group_bytes=16 << 10,
)


def tvm_target(spec: HardwareSpec) -> Any:
    """The tvm.target.Target with the device's limits."""
    import tvm

    return tvm.target.Target(
        {
            "kind": "opencl",
            "max_num_threads": spec.group_threads,
            "max_threads_per_block": spec.group_threads,
            "max_shared_memory_per_block": spec.group_bytes,
        }
    )


def detect() -> Availability:
    """What this machine has."""
    try:
        limits = opencl_device.limits()
    except TargetError as error:
        detail = f"{error.message}; only opencl:any can be compiled for"
        return Availability(compiles=True, runs=False, detail=detail, install=opencl_device.INSTALL)
    shared = limits.shared_bytes >> 10
    detail = f"{limits.name}, {limits.processors} compute units, {shared} KiB local memory"
    return Availability(compiles=True, runs=True, detail=detail)

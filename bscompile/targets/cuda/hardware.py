"""What an NVIDIA GPU is to the compiler: one HardwareSpec for each architecture.

The numbers are those of the card that most people have of it, from NVIDIA's data sheets (dense,
boost clock); the L2 rates are published measurements or scaled from them by processors and clock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from bscompile.errors import TargetError, did_you_mean
from bscompile.targets.base import HardwareSpec


@dataclass(frozen=True)
class Architecture:
    """One variant of the target.

    Attributes:
        card: Whose numbers these are.
        processors: Streaming multiprocessors.
        shared_kib: That one thread block may use.
        memory_gbps: Main memory.
        l2_mib: Second-level cache.
        l2_gbps: All processors together.
        float32_tflops: On CUDA cores.
        half_tflops: float16 or bfloat16 on tensor cores, summed in float32; tf32 at half of it.
        int8_tops: On tensor cores, summed in int32.
    """

    card: str
    processors: int
    shared_kib: int
    memory_gbps: float
    l2_mib: int
    l2_gbps: float
    float32_tflops: float
    half_tflops: float
    int8_tops: float


ARCHITECTURES: Mapping[str, Architecture] = {
    "sm_80": Architecture("A100", 108, 163, 1935, 40, 4000, 19.5, 312, 624),
    "sm_86": Architecture("RTX 3090", 82, 99, 936, 6, 2000, 35.6, 71, 284),
    "sm_89": Architecture("RTX 4090", 128, 99, 1008, 72, 4000, 82.6, 165, 661),
    "sm_90": Architecture("H100", 132, 227, 3350, 50, 5500, 66.9, 989, 1979),
    "sm_100": Architecture("B200", 148, 227, 8000, 126, 9000, 80, 2250, 4500),
    "sm_120": Architecture("RTX 5090", 170, 99, 1792, 96, 6000, 104.8, 209, 838),
}
VARIANTS = ("", *ARCHITECTURES)
NEWEST_KNOWN = "sm_90"  # what is compiled for where neither a variant nor a GPU says


def hardware(variant: str = "", threads: int | None = None) -> HardwareSpec:
    """The GPU to compile for.

    Args:
        variant: An architecture; empty takes this machine's GPU, or sm_90 where it has none.
            Several, such as ``sm_80+sm_90``, have the rates of the first and the least of their
            limits.
        threads: Ignored: a GPU uses all of its processors.

    Raises:
        TargetError: unknown variant.
    """
    names = variant.split("+") if variant else [device_architecture() or NEWEST_KNOWN]
    for name in names:
        if name not in ARCHITECTURES:
            raise TargetError(
                f"unknown variant {name!r} of target cuda", did_you_mean(name, VARIANTS[1:])
            )
    machine = _machine(names[0])
    shared = min(ARCHITECTURES[name].shared_kib for name in names) << 10
    isa = "+".join(dict.fromkeys(names))
    return replace(
        machine,
        isa=isa,
        group_bytes=shared,
        cache_bytes=(shared, *machine.cache_bytes[1:]),
    )


def architectures(hardware: HardwareSpec) -> tuple[str, ...]:
    """What code is made for."""
    return tuple(hardware.isa.split("+"))


def _machine(name: str) -> HardwareSpec:
    known = ARCHITECTURES[name]
    share = 1e3 / known.processors
    return HardwareSpec(
        name=f"NVIDIA {known.card} ({name})",
        isa=name,
        features=(),
        cores=known.processors,
        peak_gflops={
            "float32": known.float32_tflops * share,
            "tf32": known.half_tflops / 2 * share,
            "float16": known.half_tflops * share,
            "bfloat16": known.half_tflops * share,
            "int8": known.int8_tops * share,
        },
        memory_gbps=known.memory_gbps,
        cache_bytes=(known.shared_kib << 10, known.l2_mib << 20),
        cache_gbps=(128 * 1.7, known.l2_gbps / known.processors),
        vector_bytes=128,
        launch_seconds=3e-6,
        group_threads=1024,
        group_bytes=known.shared_kib << 10,
    )


@cache
def device() -> tuple[str, str] | None:
    """(name, such as sm_90) of the first GPU, asked of the driver; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return None
        name = ctypes.create_string_buffer(128)
        driver.cuDeviceGetName(name, len(name), 0)
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    except (OSError, AttributeError):
        return None
    return name.value.decode(), f"sm_{major.value}{minor.value}"


def device_architecture() -> str | None:
    """The architecture to compile for this machine's GPU: the newest known that it can run."""
    found = device()
    if found is None:
        return None
    number = int(found[1].removeprefix("sm_"))
    fitting = [name for name in ARCHITECTURES if int(name.removeprefix("sm_")) <= number]
    return fitting[-1] if fitting else None

"""What a device allows one group of threads, as a HardwareSpec carries it."""

from __future__ import annotations

from bscompile.targets.base import HardwareSpec

#: Features of a HardwareSpec that decide how weights of two bytes are read.
HALF, HALF_BITS = "float16", "float16-bits"

#: A feature of devices whose work-items are loops on the cores of a CPU.
CPU = "cpu"


def half_storage(hardware: HardwareSpec) -> str:
    """The dtype in which kernels take float16 weights: empty where they cannot.

    Devices without a half type read the bits as uint16 and widen them by integer arithmetic.
    """
    if HALF in hardware.features:
        return "float16"
    return "uint16" if HALF_BITS in hardware.features else ""


def storage(dtype: str, hardware: HardwareSpec) -> str:
    """The dtype in which kernels take weights of a dtype: empty where they cannot."""
    if dtype == "float16":
        return half_storage(hardware)
    return dtype if dtype == "float32" else ""


def fits(hardware: HardwareSpec, threads: int, shared_bytes: int) -> bool:
    """Whether the device can run groups of that size."""
    return threads <= hardware.group_threads and shared_bytes <= hardware.group_bytes

"""The templates' cost model: groups on processors, multiply-adds, fetches and memory.

A processor (``HardwareSpec.cores``) has ``peak_gflops``; a nest takes the longer of its
arithmetic and its memory traffic, and no less than the work of one group. Numbers fetched from
shared memory cost as much as multiply-adds, so larger tiles per thread win until too few groups
are left.
"""

from __future__ import annotations

from dataclasses import dataclass

from bscompile.targets.base import HardwareSpec
from bscompile.targets.gpu.limits import CPU

_BARRIER = 40.0  # multiply-adds of one thread that a barrier costs
_GROUP = 200.0  # multiply-adds of one thread that starting a group costs
_LOOPED = 4.0  # instructions of a work-item that is a loop's iteration, for each operation
_OVERLAP = 0.3  # share of the shorter of work and traffic that is not hidden


@dataclass(frozen=True)
class Work:
    """What one nest does.

    Attributes:
        groups: Of threads.
        threads: Of one group.
        operations: Of one thread in all: instructions, which on a CPU work on vectors.
        barriers: That a group passes in all.
        bytes: Read from and written to memory by all groups together.
    """

    groups: int
    threads: int
    operations: float
    barriers: float
    bytes: float


def seconds(hardware: HardwareSpec, work: Work) -> float:
    """Expected time of one launch."""
    lanes = max(1, hardware.vector_bytes // 4)
    rate = hardware.peak_gflops["float32"] * 1e9 / 2  # multiply-adds a second, one processor
    if CPU in hardware.features and work.threads > 1:
        used = work.threads * lanes * _LOOPED  # one after the other; vectors of them are rare
    elif CPU in hardware.features:
        used = lanes
    else:  # a group shorter than a vector leaves lanes idle
        used = -(-work.threads // lanes) * lanes
    per_group = used * (work.operations + _BARRIER * work.barriers + _GROUP) / rate
    compute = -(-work.groups // hardware.cores) * per_group
    memory = work.bytes / (hardware.memory_gbps * 1e9)
    longer, shorter = max(compute, memory), min(compute, memory)
    return longer + _OVERLAP * shorter + hardware.launch_seconds

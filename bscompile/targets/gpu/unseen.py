"""GPUs that code is generated for and that nothing here runs: their limits and typical rates."""

from __future__ import annotations

from bscompile.targets.base import HardwareSpec
from bscompile.targets.gpu.limits import HALF

_LANES, _GIGAHERTZ = 64, 1.5
_LAUNCH_SECONDS = 5e-6


def unseen_gpu(
    name: str, isa: str, processors: int, memory_gbps: float, shared_bytes: int
) -> HardwareSpec:
    """A GPU by its data sheet.

    Args:
        name: For people.
        isa: The instruction set variant.
        processors: Compute units, or cores.
        memory_gbps: Of its memory.
        shared_bytes: Shared memory of one group.
    """
    peak = 2 * _LANES * _GIGAHERTZ
    return HardwareSpec(
        name=name,
        isa=isa,
        features=(),
        cores=processors,
        peak_gflops={"float32": peak, "float16": peak},
        memory_gbps=memory_gbps,
        cache_bytes=(4 << 20,),
        cache_gbps=(200.0,),
        vector_bytes=4 * _LANES,
        launch_seconds=_LAUNCH_SECONDS,
        group_threads=256,
        group_bytes=shared_bytes,
        extensions={"float16": (HALF,)},
    )

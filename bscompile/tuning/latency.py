"""Seconds of a factorized layer on a target, for those who choose a block before training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from bscompile.targets.base import TargetContext
from bscompile.tuning.estimate import estimate, random_weight
from bscompile.tuning.measurer import Measurer

Latency = Callable[[tuple[int, int], tuple[int, int], int], float]


def layer_latency(
    context: TargetContext,
    rows: int,
    density: float,
    measurer: Measurer | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Latency:
    """A function of (out, in), block and rank: seconds of the best form of such a layer.

    The best form may be the factors, the merged block-sparse weight or the dense one: what the
    compiler would choose. Each layer is looked at once.

    Args:
        context: The target.
        rows: Rows of x.
        density: Share of live blocks that training shall leave.
        measurer: Times the kernels; None asks the target's cost model.
        progress: Called with a line for each layer.
    """

    @cache
    def latency(shape: tuple[int, int], block: tuple[int, int], rank: int) -> float:
        (out, inner), (bh, bw) = shape, block
        progress(f"[{out}, {inner}] in {bh}x{bw} blocks")
        weight = random_weight(shape, block, density, rank)
        best = estimate(weight, rows, context, measurer=measurer)[0]
        return best.expected if best.measured is None else best.measured

    return latency

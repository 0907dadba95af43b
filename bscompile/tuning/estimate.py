"""How fast a layer would be that nobody has trained yet: by cost model, and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bscompile.dialect import LinearOp, Weight
from bscompile.dialect.precision import PRECISIONS
from bscompile.errors import UsageError
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets.base import Problem, TargetContext
from bscompile.tuning.child import ChildMeasurer
from bscompile.tuning.measurer import Layer, Measurer, measure_apart
from bscompile.tuning.record import OK, Variant
from bscompile.tuning.roofline import flops, problem_in, roofline_seconds, traffic_bytes
from bscompile.tuning.variants import all_variants

_LARGEST = 2**30  # weights; a few gigabytes while they are made
_ROUNDS = 15
_AT_ONCE = 4  # kinds that are timed in turns, the dense form among them each time
_PER_KIND = 2  # configurations of each form and block that are measured


@dataclass(frozen=True)
class Estimate:
    """One form and execution block of the layer.

    Attributes:
        label: Such as ``block_sparse 16x8``.
        config: Template and configuration.
        expected: Seconds by the cost model.
        measured: Seconds measured; None where it was not asked for or failed.
        speedup: Dense over this form, measured where that is known for both.
        flops: Of one call.
        bytes: Of the weight, x and y.
        roofline: Limit of the machine over the time, measured where known.
    """

    label: str
    config: str
    expected: float
    measured: float | None
    speedup: float
    flops: int
    bytes: int
    roofline: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def random_weight(
    shape: tuple[int, int], block: tuple[int, int], density: float, rank: int, seed: int = 0
) -> Weight:
    """A weight like the one that somebody thinks of training; rank 0 has no factors.

    Raises:
        UsageError: the sizes do not go together.
    """
    if min(*shape, *block) < 1:
        raise UsageError("--shape and --block need positive sides")
    if shape[0] * shape[1] > _LARGEST:
        raise UsageError(f"--shape {shape[0]}x{shape[1]}: at most {_LARGEST:,} weights")
    if not 0 <= density <= 1:
        raise UsageError(f"--density: 0 to 1 is wanted, got {density}")
    rng = np.random.default_rng(seed)
    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    live = np.zeros(grid[0] * grid[1], bool)
    live[: max(round(density * live.size), 1 if density else 0)] = True
    mask = rng.permutation(live).reshape(grid)
    if not rank:
        dense = rng.standard_normal(shape, dtype=np.float32)
        dense *= np.kron(mask, np.ones(block, bool))[: shape[0], : shape[1]]
        return BlockSparseMatrix.from_dense(dense, block)
    if shape[0] % block[0] or shape[1] % block[1]:
        raise UsageError(
            f"a factorized layer needs blocks that divide it, "
            f"got {block[0]}x{block[1]} in {shape[0]}x{shape[1]}"
        )
    a = rng.standard_normal((rank, *grid), dtype=np.float32) * mask
    return KroneckerSum(a, rng.standard_normal((rank, *block), dtype=np.float32))


def estimate(
    weight: Weight,
    rows: int,
    context: TargetContext,
    *,
    epilogue: tuple[str, ...] = ("bias",),
    precision: str = "float32",
    measurer: Measurer | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Estimate]:
    """Every form and execution block of a layer, the fastest first.

    Args:
        weight: Of the layer.
        rows: Rows of x.
        context: The target.
        epilogue: Steps after the product.
        precision: What it is multiplied in, see dialect/precision.py.
        measurer: Measures the best configurations of each; None leaves it at the cost model.
        progress: Called with one line for each few forms that are measured.

    Raises:
        UsageError: the target has no kernel for the layer.
    """
    op = LinearOp("layer", weight, epilogue)
    layer = _layer(op, rows, precision, context)
    kinds: dict[str, list[Variant]] = {}
    for variant in all_variants(layer):
        kinds.setdefault(variant.label, []).append(variant)
    if "dense" not in kinds:
        raise UsageError(f"target {context.target.name} has no dense kernel in {precision}")
    times: dict[str, tuple[float, Variant]] = {}
    if measurer is not None:
        times = _measure(layer, kinds, measurer, progress)
    found = [
        _estimate(layer, variants, times, kinds["dense"][0].expected) for variants in kinds.values()
    ]
    return sorted(found, key=lambda e: e.expected if e.measured is None else e.measured)


def measuring(seconds: float = 30.0) -> ChildMeasurer:
    """What ``estimate`` measures with; the caller closes it."""
    return ChildMeasurer(seconds)


def _measure(
    layer: Layer,
    kinds: dict[str, list[Variant]],
    measurer: Measurer,
    progress: Callable[[str], None],
) -> dict[str, tuple[float, Variant]]:
    """Fastest measured time of each kind; the dense form takes part in every round."""
    measurer.open(layer)
    times: dict[str, tuple[float, Variant]] = {}
    sparse = [label for label in kinds if label != "dense"]
    groups = [sparse[i : i + _AT_ONCE - 1] for i in range(0, len(sparse), _AT_ONCE - 1)] or [[]]
    for number, group in enumerate(groups, 1):
        progress(f"measuring {number}/{len(groups)}: {', '.join(group) or 'dense'}")
        variants = [v for label in ("dense", *group) for v in kinds[label][:_PER_KIND]]
        for variant, result in zip(
            variants, measure_apart(measurer, variants, _ROUNDS), strict=True
        ):
            seconds = min(result.seconds, default=float("inf"))
            if result.status == OK and seconds < times.get(variant.label, (float("inf"),))[0]:
                times[variant.label] = (seconds, variant)
    return times


def _estimate(
    layer: Layer,
    variants: list[Variant],
    times: dict[str, tuple[float, Variant]],
    dense_expected: float,
) -> Estimate:
    label = variants[0].label
    measured, variant = times.get(label, (None, variants[0]))
    both = measured is not None and "dense" in times
    dense = times["dense"][0] if both else dense_expected
    seconds = measured if both and measured is not None else variants[0].expected
    problem = problem_in(layer, variant)
    return Estimate(
        label=label,
        config=f"{variant.template} ({', '.join(f'{k} {v}' for k, v in variant.config.items())})",
        expected=variants[0].expected,
        measured=measured,
        speedup=dense / seconds,
        flops=flops(problem),
        bytes=traffic_bytes(problem),
        roofline=roofline_seconds(problem, layer.context.hardware) / seconds,
    )


def _layer(op: LinearOp, rows: int, precision: str, context: TargetContext) -> Layer:
    """The layer on the machine with what it has for the precision."""
    extended = replace(context, hardware=context.hardware.extended(precision))
    return Layer(op, rows, PRECISIONS[precision], extended)


def break_even(
    weight: Weight, rows: int, context: TargetContext, precision: str = "float32"
) -> float:
    """Share of live blocks at which the best sparse form is expected to cost as much as dense."""
    layer = _layer(LinearOp("layer", weight, ("bias",)), rows, precision, context)
    context = layer.context
    dense, *sparse = _problems(layer)
    target = _cheapest(dense, context)
    best = min(sparse, key=lambda problem: _cheapest(problem, context), default=None)
    if best is None:
        return 0.0
    blocks = -(-best.n // best.block[0]) * -(-best.k // best.block[1])
    low, high = 0, blocks
    while high - low > max(1, blocks // 200):
        middle = (low + high) // 2
        cheaper = _cheapest(replace(best, nnzb=middle), context) < target
        low, high = (middle, high) if cheaper else (low, middle)
    return high / blocks


def _problems(layer: Layer) -> Iterator[Problem]:
    from bscompile.targets.planner import candidates

    return (candidate.problem for candidate in candidates(layer.op, layer.problem))


def _cheapest(problem: Problem, context: TargetContext) -> float:
    return min(
        (
            template.cost(problem, config, context.hardware)
            for template in context.target.templates
            for config in template.space(problem, context.hardware)
        ),
        default=float("inf"),
    )

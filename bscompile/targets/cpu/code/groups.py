"""Instance and group normalisation of images with channels last: vectors of channels.

A task takes some channels of an image, whole groups of them, three times: for their means, for
their variances, for the result. They are few enough that the cache still holds them the second
time. Sums run over short stretches of positions first, so that they stay exact on large images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cpu.code.tensors import (
    Argument,
    Size,
    Tensor,
    function,
    in_rows,
    over_channels,
)
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Buffer, Expr

VECTORS = 4  # of channels, summed side by side
STRETCH = 64  # positions, whose sum is one addend of the whole

_POSITIONS = "hwdefg"


def normalise(
    shape: tuple[Size, ...],
    groups: int,
    epsilon: float,
    steps: Sequence[str],
    finish: Callable[[Expr, int], Expr],
    *,
    lanes: int,
    tasks: int,
) -> Any:
    """The function (x [b, ..., c], a vector [c] for each step, y [b, ..., c]).

    Args:
        shape: Of x and y; the last size is a number.
        groups: How many groups of neighbouring channels have a mean and a variance.
        epsilon: Added to the variance.
        steps: What is done by channel afterwards: ``multiply`` or ``add``.
        finish: (value, lanes) -> what becomes of it before it is stored.
        lanes: Elements of one vector.
        tasks: Parallel tasks.
    """
    channels, images = int(shape[-1]), shape[0] if isinstance(shape[0], int) else 1
    per_group = channels // groups
    together = _together(groups, per_group, lanes, -(-tasks // images))
    units, width, wide = -(-groups // together), together * per_group, VECTORS * lanes
    axes = "b" + _POSITIONS[: len(shape) - 2] + "c"
    tensors = [Tensor("x", axes, shape)]
    tensors += [Tensor(f"v{i}", "c", (channels,)) for i in range(len(steps))]
    tensors.append(Tensor("y", axes, shape))

    def body(arguments: list[Argument], size: Callable[[Size], Expr]) -> None:
        positions = T.int64(math.prod(size(s) for s in shape[1:-1]))
        rows = T.int64(size(shape[0])) * positions
        x, *vectors, y = arguments
        source, target = (in_rows(argument, rows, channels) for argument in (x, y))
        count = T.cast(positions * per_group, "float32")

        def unit(number: Expr) -> None:
            top = T.bind(T.floordiv(number, T.int64(units)) * positions)
            index = T.floormod(number, T.int64(units))
            left = T.bind(emit.tile_start(groups, together, index) * per_group)
            mean, factor, shift = (T.sblock_alloc_buffer((width,), "float32") for _ in range(3))

            def average(goal: Buffer, element: Callable[[Expr, Expr, int], Expr]) -> None:
                """The mean over each group of ``element(row, channel, elements)``."""

                def some(c: Expr, cut: list[tuple[int, int]]) -> None:
                    _sum(goal, element, top, positions, count, c, cut)

                over_channels(width, wide, lanes, some)
                if per_group > 1:
                    _join(goal, together, per_group)

            def square(row: Expr, c: Expr, n: int) -> Expr:
                value = source.load(n, r=row, c=left + c)
                distance = T.bind(value - emit.load(mean, c, lanes=n))
                return distance * distance

            average(mean, lambda row, c, n: source.load(n, r=row, c=left + c))
            average(factor, square)

            def prepare(c: Expr, cut: list[tuple[int, int]]) -> None:
                for at, n in cut:
                    variance = emit.load(factor, c + at, lanes=n)
                    deviation = T.sqrt(variance + emit.constant(epsilon, n))
                    scale = T.bind(emit.constant(1.0, n) / deviation)
                    moved = emit.constant(0.0, n)
                    for step, argument in zip(steps, vectors, strict=True):
                        vector = T.bind(argument.load(n, c=left + c + at))
                        if step == "multiply":
                            scale, moved = T.bind(scale * vector), T.bind(moved * vector)
                        else:
                            moved = T.bind(moved + vector)
                    emit.store(factor, scale, c + at, lanes=n)
                    emit.store(shift, moved, c + at, lanes=n)

            over_channels(width, wide, lanes, prepare)

            def result(c: Expr, cut: list[tuple[int, int]]) -> None:
                held = [
                    [T.bind(emit.load(b, c + at, lanes=n)) for b in (mean, factor, shift)]
                    for at, n in cut
                ]
                with T.serial(0, positions) as position, emit.opaque():
                    row = T.bind(top + position)
                    for (at, n), (centre, scale, moved) in zip(cut, held, strict=True):
                        value = source.load(n, r=row, c=left + c + at)
                        value = T.bind((value - centre) * scale + moved)
                        target.store(finish(value, n), n, r=row, c=left + c + at)

            over_channels(width, wide, lanes, result)

        def task(p: Expr) -> None:
            work = T.int64(size(shape[0])) * units
            with emit.loop(*emit.share(work, p, tasks)) as number, emit.opaque():
                unit(number)

        emit.parallel_tasks(tasks, task)

    return function("normalise_groups", tensors, body)


def _together(groups: int, per_group: int, lanes: int, tasks: int) -> int:
    """Groups of one unit: as many as make some vectors, fewer where tasks would have none."""
    fits = max(1, VECTORS * lanes // per_group)
    while fits > 1 and fits * per_group > lanes and -(-groups // fits) < tasks:
        fits = -(-fits // 2)
    return min(groups, fits)


def _sum(
    goal: Buffer,
    element: Callable[[Expr, Expr, int], Expr],
    top: Expr,
    positions: Expr,
    count: Expr,
    c: Expr,
    cut: list[tuple[int, int]],
) -> None:
    """Some vectors of channels, summed over all positions and divided by ``count``."""
    width = sum(n for _, n in cut)
    with emit.opaque():
        whole, part = emit.accumulators(2, width)
        for at, n in cut:
            emit.store(whole, emit.constant(0.0, n), at, lanes=n)
        with T.serial(0, T.floordiv(positions + (STRETCH - 1), T.int64(STRETCH))) as stretch:
            for at, n in cut:
                emit.store(part, emit.constant(0.0, n), at, lanes=n)
            first = T.bind(stretch * STRETCH)
            with T.serial(0, T.min(T.int64(STRETCH), positions - first)) as position:
                for at, n in cut:
                    value = T.bind(element(top + first + position, c + at, n))
                    emit.store(part, emit.load(part, at, lanes=n) + value, at, lanes=n)
            for at, n in cut:
                both = emit.load(whole, at, lanes=n) + emit.load(part, at, lanes=n)
                emit.store(whole, both, at, lanes=n)
        for at, n in cut:
            mean = emit.load(whole, at, lanes=n) / emit.splat(count, n)
            emit.store(goal, mean, c + at, lanes=n)


def _join(sums: Buffer, groups: int, per_group: int) -> None:
    """Every channel gets the sum over its group."""
    with T.serial(0, T.int64(groups)) as group, emit.opaque():
        total, zero = emit.accumulators(1, 1)[0], T.int64(0)
        emit.store(total, T.float32(0), zero, lanes=1)
        with T.serial(0, T.int64(per_group)) as c:
            emit.store(total, total[zero] + sums[group * per_group + c], zero, lanes=1)
        with T.serial(0, T.int64(per_group)) as c:
            emit.store(sums, total[zero], group * per_group + c, lanes=1)

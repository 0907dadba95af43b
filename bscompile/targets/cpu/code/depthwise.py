"""A depthwise convolution on images with channels last: vectors of channels, no reduction.

Each output position is a sum of kh·kw products of vectors. Some neighbouring positions of one
line are computed together, so that the loads of one hide behind the multiply-adds of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.dialect import ConvGeometry
from bscompile.targets.cpu.code.tensors import Argument, Size, Tensor, function, over_channels
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Expr
from bscompile.targets.kernels.code.windows import Run, for_kinds, rows_inside, tile_kinds

POSITIONS = 6  # of one line, computed together
VECTORS = 2  # of channels


def generate(
    x: tuple[Size, ...],
    y: tuple[Size, ...],
    conv: ConvGeometry,
    *,
    biased: bool,
    finish: Callable[[Expr, int], Expr],
    lanes: int,
    tasks: int,
) -> Any:
    """The function (x [b, h, w, c], taps [kh, kw, c, 1], [bias [c],] y [b, oh, ow, c]).

    Args:
        x: Sizes of the image; all but the first are numbers.
        y: Sizes of the result, likewise.
        conv: Its geometry; what lies outside the image is never read.
        biased: Whether there is a bias.
        finish: (value, lanes) -> what becomes of it before it is stored.
        lanes: Elements of one vector.
        tasks: Parallel tasks.
    """
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilations
    height, channels, width = int(x[1]), int(x[3]), int(y[2])
    positions = min(POSITIONS, width)
    kinds = tile_kinds(conv, int(x[2]), positions)
    tiles, wide = -(-width // positions), VECTORS * lanes
    tensors = [Tensor("x", "bhwc", x), Tensor("taps", "pqci", (kh, kw, channels, 1))]
    tensors += [Tensor("bias", "c", (channels,))] if biased else []
    tensors.append(Tensor("y", "bhwc", y))

    def body(arguments: list[Argument], size: Callable[[Size], Expr]) -> None:
        image, taps, *rest = arguments
        bias, target = (rest[0] if biased else None), rest[-1]
        heights = T.int64(size(y[1]))
        lines = T.int64(size(y[0])) * heights

        def task(p: Expr) -> None:
            with emit.loop(*emit.share(lines, p, tasks)) as line, emit.opaque():
                b = T.bind(T.floordiv(line, heights))
                row = T.bind(T.floormod(line, heights))
                with T.serial(0, T.int64(tiles)) as index, emit.opaque():
                    first = T.bind(emit.tile_start(width, positions, index))
                    for_kinds(kinds, index, lambda runs: along(b, row, first, runs))

        def along(b: Expr, row: Expr, first: Expr, runs: Sequence[Run]) -> None:
            over_channels(channels, wide, lanes, lambda c, cut: tile(b, row, first, runs, c, cut))

        def tile(
            b: Expr,
            row: Expr,
            first: Expr,
            runs: Sequence[Run],
            c: Expr,
            cut: list[tuple[int, int]],
        ) -> None:
            with emit.opaque():
                sums = emit.accumulators(positions, wide)
                for acc in sums:
                    for at, n in cut:
                        start = bias.load(n, c=c + at) if bias else emit.constant(0.0, n)
                        emit.store(acc, start, at, lanes=n)
                top = T.bind(row * sh - conv.pads[0])
                with emit.loop(*rows_inside(conv, height, top)) as p:
                    for run in runs:
                        for q in range(run.first, run.first + run.count):
                            for at, n in cut:
                                tap = T.bind(taps.load(n, p=p, q=T.int64(q), c=c + at))
                                for r in run.positions:
                                    column = (first + r) * sw + (q * dw - conv.pads[1])
                                    value = image.load(n, b=b, h=top + p * dh, w=column, c=c + at)
                                    total = emit.load(sums[r], at, lanes=n) + tap * value
                                    emit.store(sums[r], total, at, lanes=n)
                for r, acc in enumerate(sums):
                    for at, n in cut:
                        value = finish(T.bind(emit.load(acc, at, lanes=n)), n)
                        target.store(value, n, b=b, h=row, w=first + r, c=c + at)

        emit.parallel_tasks(tasks, task)

    return function("depthwise", tensors, body)

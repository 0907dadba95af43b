"""A convolution with a dense weight packed in panels; the kernel reads the image itself.

A tile is some neighbouring positions of one output row times one panel of outputs, as in
dense.py; instead of a row of a matrix each position reads the runs of its window. With channels
last a run is a whole row of the window, kw · channels values side by side; with channels first
one row of one channel. What lies outside the image is never multiplied: tiles at the ends of an
output row have code of their own, which leaves out the positions whose column is outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Image, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dense import CHAINS, UNROLL
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish_tile
from bscompile.targets.kernels.code.windows import (
    Run,
    for_kinds,
    positions_of,
    rows_inside,
    tile_kinds,
)
from bscompile.targets.kernels.vectors import pieces


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    image: Image,
    *,
    rows: int,
    lanes: int,
    tasks: int,
) -> Any:
    """The kernel (x [batch, height·width·channels], panels, *epilogue tensors, y [m, n]).

    Args:
        problem: The matmul over the windows.
        operands: The packed panels [panels, k, width]; the inputs are in the order kh, kw,
            channels, or channels, kh, kw where the image has its channels first.
        image: What x is.
        rows: Positions per tile, at most.
        lanes: Elements of one vector.
        tasks: Parallel tasks; they share (panel, output row, tile) triples equally.
    """
    panels, _, width = operands[0][1].shape
    conv = image.conv
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilations
    # A plane holds ``unit`` values at each position.
    planes, unit = (image.channels, 1) if image.channels_first else (1, image.channels)
    line_length = image.width * unit
    oh, ow = conv.output_size(image.height, image.width)
    positions = positions_of(ow, rows)
    kinds = tile_kinds(conv, image.width, positions)
    tiles = -(-ow // positions)
    vectors = pieces(width, lanes)

    def body(args: Arguments) -> None:
        lines = T.floordiv(T.int64(args.m), T.int64(ow))  # output rows of all images

        def task(p: Expr) -> None:
            with emit.loop(*emit.share(lines * (tiles * panels), p, tasks)) as item, emit.opaque():
                panel = T.bind(T.floordiv(item, lines * tiles))
                line = T.bind(T.floordiv(T.floormod(item, lines * tiles), T.int64(tiles)))
                index = T.bind(T.floormod(item, T.int64(tiles)))
                first = T.bind(emit.tile_start(ow, positions, index))
                for_kinds(kinds, index, lambda runs: tile(args, panel, line, first, runs))

        emit.parallel_tasks(tasks, task)

    def tile(args: Arguments, panel: Expr, line: Expr, first: Expr, runs: Sequence[Run]) -> None:
        with emit.opaque():
            (weights,) = args.operands
            batch = T.bind(T.floordiv(line, T.int64(oh)))
            top = T.bind(T.floormod(line, T.int64(oh)) * sh - conv.pads[0])
            left = T.bind(first * sw - conv.pads[1])
            split = max(1, CHAINS * lanes // (positions * width))
            sums = [emit.accumulators(positions, width) for _ in range(split)]

            def accumulate(rows_of: list[Buffer], run: Run, start: Expr, weight_row: Expr) -> None:
                for at, size in vectors:
                    weight = T.bind(emit.weights(weights, panel, weight_row, at, lanes=size))
                    for r in run.positions:
                        value = args.x[batch, start + r * (sw * unit)]
                        product = emit.splat(value, size) * weight
                        total = emit.load(rows_of[r], at, lanes=size) + product
                        emit.store(rows_of[r], total, at, lanes=size)

            for rows_of in sums:
                for acc in rows_of:
                    for at, size in vectors:
                        emit.store(acc, emit.constant(0.0, size), at, lanes=size)
            inside = rows_inside(conv, image.height, top)
            with T.serial(0, T.int64(planes)) as plane, emit.loop(*inside) as p:
                row = T.bind(plane * (image.height * line_length) + (top + p * dh) * line_length)
                for run in runs:
                    start = T.bind(row + (left + run.first * dw) * unit)
                    offset = T.bind(((plane * kh + p) * kw + run.first) * unit)
                    length = run.count * unit
                    with T.serial(0, T.int64(length // UNROLL)) as step:
                        for u in range(UNROLL):
                            inner = step * UNROLL + u
                            accumulate(sums[u % split], run, start + inner, offset + inner)
                    for u in range(length - length % UNROLL, length):
                        accumulate(sums[u % split], run, start + u, offset + u)
            # The last panel is moved back over its neighbour, like the last tile.
            output = T.bind(T.min(panel * width, T.int64(problem.n - width)))

            def value(r: int, at: int, size: int) -> Expr:
                return emit.total([rows_of[r] for rows_of in sums], at, size)

            finish_tile(args, positions, vectors, value, T.bind(line * ow + first), output)

    batch = problem.m // (oh * ow) if problem.m is not None else None
    shape = (batch, image.height * image.width * image.channels)
    return emit.generate("dense_conv", problem, operands, body, x_shape=shape)

"""A convolution with a dense weight packed in panels; the kernel reads the image itself.

A tile is some neighbouring positions of one output row times one panel of outputs, as in
dense.py; instead of a row of a matrix each position reads the runs of its window. With channels
last a run is a whole row of the window, kw · channels values side by side.
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
from bscompile.targets.kernels.code.windows import positions_of
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
        operands: The packed panels [panels, kh·kw·channels, width].
        image: What x is.
        rows: Positions per tile, at most.
        lanes: Elements of one vector.
        tasks: Parallel tasks; they share (panel, output row, tile) triples equally.
    """
    panels, _, width = operands[0][1].shape
    conv, channels = image.conv, image.channels
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilations
    line_length = image.width * channels
    oh, ow = conv.output_size(image.height, image.width)
    positions = positions_of(ow, rows)
    tiles = -(-ow // positions)
    run = kw * channels if dw == 1 else channels
    vectors = pieces(width, lanes)

    def body(args: Arguments) -> None:
        lines = T.floordiv(T.int64(args.m), T.int64(ow))  # output rows of all images

        def task(p: Expr) -> None:
            with emit.loop(*emit.share(lines * (tiles * panels), p, tasks)) as item, emit.opaque():
                panel = T.bind(T.floordiv(item, lines * tiles))
                line = T.bind(T.floordiv(T.floormod(item, lines * tiles), T.int64(tiles)))
                first = T.bind(emit.tile_start(ow, positions, T.floormod(item, T.int64(tiles))))
                tile(args, panel, line, first)

        emit.parallel_tasks(tasks, task)

    def tile(args: Arguments, panel: Expr, line: Expr, first: Expr) -> None:
        (weights,) = args.operands
        batch = T.bind(T.floordiv(line, T.int64(oh)))
        top = T.floormod(line, T.int64(oh)) * (sh * line_length)
        corner = T.bind(top + first * (sw * channels))
        split = max(1, CHAINS * lanes // (positions * width))
        sums = [emit.accumulators(positions, width) for _ in range(split)]

        def accumulate(rows_of: list[Buffer], start: Expr, offset: Expr, inner: Expr) -> None:
            for at, size in vectors:
                weight = T.bind(emit.weights(weights, panel, offset + inner, at, lanes=size))
                for r, acc in enumerate(rows_of):
                    value = args.x[batch, start + r * (sw * channels) + inner]
                    product = emit.splat(value, size) * weight
                    emit.store(acc, emit.load(acc, at, lanes=size) + product, at, lanes=size)

        for rows_of in sums:
            for acc in rows_of:
                for at, size in vectors:
                    emit.store(acc, emit.constant(0.0, size), at, lanes=size)
        with T.serial(0, T.int64(kh)) as p, T.serial(0, T.int64(kw * channels // run)) as q:
            start = T.bind(corner + p * (dh * line_length) + q * (dw * channels))
            offset = T.bind(p * (kw * channels) + q * run)
            with T.serial(0, T.int64(run // UNROLL)) as step:
                for u in range(UNROLL):
                    accumulate(sums[u % split], start, offset, step * UNROLL + u)
            for u in range(run % UNROLL):
                inner = T.int64(run - run % UNROLL + u)
                accumulate(sums[u % split], start, offset, inner)
        # The last panel is moved back over its neighbour, like the last tile.
        output = T.bind(T.min(panel * width, T.int64(problem.n - width)))

        def value(r: int, at: int, size: int) -> Expr:
            return emit.total([rows_of[r] for rows_of in sums], at, size)

        finish_tile(args, positions, vectors, value, T.bind(line * ow + first), output)

    batch = problem.m // (oh * ow) if problem.m is not None else None
    shape = (batch, image.height * line_length)
    return emit.generate("dense_conv", problem, operands, body, x_shape=shape)

"""A convolution with a block-sparse weight, vectorised over outputs; the kernel reads the image.

As block_sparse_outputs.py, with two differences: the rows of a tile are neighbouring positions of
one output row, and an input of a block is found through its offset from the corner of the window.
So blocks may lie in any order of channels and taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Image, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.block_sparse_outputs import UNROLL
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
    """The kernel (x [batch, height·width·channels], *operands, *epilogue tensors, y [m, n]).

    Args:
        problem: The matmul over the windows.
        operands: values [nnzb, bw, bh]; offsets int32 [nnzb, bw], where each input of a block
            lies from the window's corner; indptr int32 [block rows + 1].
        image: What x is.
        rows: Positions per tile, at most.
        lanes: Elements of one vector.
        tasks: Parallel tasks; they share the lines of the output.
    """
    _, bw, bh = operands[0][1].shape
    block_rows = len(operands[2][1]) - 1
    overhang = block_rows * bh - problem.n
    (sh, sw), channels = image.conv.strides, image.channels
    line_length = image.width * channels
    oh, ow = image.conv.output_size(image.height, image.width)
    positions = positions_of(ow, rows)
    tiles = -(-ow // positions)
    vectors = pieces(bh, lanes)
    chains = max(1, min(bw, 8 // (positions * len(vectors))))

    def body(args: Arguments) -> None:
        lines = T.floordiv(T.int64(args.m), T.int64(ow))

        def task(p: Expr) -> None:
            all_tiles = T.serial(0, T.int64(tiles))
            with emit.loop(*emit.share(lines, p, tasks)) as line, all_tiles as index, emit.opaque():
                batch = T.bind(T.floordiv(line, T.int64(oh)))
                top = T.bind(T.floormod(line, T.int64(oh)) * (sh * line_length))
                first = T.bind(emit.tile_start(ow, positions, index))
                corner = T.bind(top + first * (sw * channels))
                row = T.bind(line * ow + first)
                with T.serial(0, T.int64(block_rows)) as block_row, emit.opaque():
                    tile(args, batch, corner, row, T.bind(block_row))

        emit.parallel_tasks(tasks, task)

    def tile(args: Arguments, batch: Expr, corner: Expr, row: Expr, block_row: Expr) -> None:
        values, offsets, indptr = args.operands
        sums = [emit.accumulators(positions, bh) for _ in range(chains)]

        def accumulate(rows_of: list[Buffer], block: Expr, inner: Expr) -> None:
            start = T.bind(corner + T.cast(offsets[block, inner], "int64"))
            for at, size in vectors:
                weight = T.bind(emit.weights(values, block, inner, at, lanes=size))
                for r, acc in enumerate(rows_of):
                    value = args.x[batch, start + r * (sw * channels)]
                    product = emit.splat(value, size) * weight
                    emit.store(acc, emit.load(acc, at, lanes=size) + product, at, lanes=size)

        for rows_of in sums:
            for acc in rows_of:
                for at, size in vectors:
                    emit.store(acc, emit.constant(0.0, size), at, lanes=size)
        with emit.loop(indptr[block_row], indptr[block_row + 1]) as index:
            block = T.bind(T.cast(index, "int64"))
            loops = bw // UNROLL if bw > UNROLL else 0
            if loops:
                with T.serial(0, T.int64(loops)) as step:
                    for u in range(UNROLL):
                        accumulate(sums[u % chains], block, step * UNROLL + u)
            for inner in range(loops * UNROLL, bw):
                accumulate(sums[inner % chains], block, T.int64(inner))

        def value(r: int, at: int, size: int) -> Expr:
            return emit.total([rows_of[r] for rows_of in sums], at, size)

        def write(cut: list[tuple[int, int]]) -> None:
            finish_tile(args, positions, cut, value, row, block_row * bh)

        if not overhang:
            write(vectors)
            return
        with T.If(block_row < block_rows - 1):
            with T.Then():
                write(vectors)
            with T.Else():
                write(pieces(bh - overhang, lanes))

    batch = problem.m // (oh * ow) if problem.m is not None else None
    shape = (batch, image.height * line_length)
    return emit.generate("block_sparse_conv", problem, operands, body, x_shape=shape)

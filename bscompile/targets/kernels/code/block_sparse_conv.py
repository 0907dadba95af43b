"""A convolution with a block-sparse weight, vectorised over outputs; the kernel reads the image.

As block_sparse_outputs.py, with two differences: the rows of a tile are neighbouring positions of
one output row, and an input of a block is found through its offset from the corner of the window.
So blocks may lie in any order of channels and taps. Where the windows of a tile reach over the
image's edge, what they read is first copied, with zeros around it, to a place that is laid out
like the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Image, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.block_sparse_outputs import UNROLL
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish_tile
from bscompile.targets.kernels.code.windows import copied_line, positions_of, span_of
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
            lies from the window's corner in an image whose rows are ``copied_line`` apart;
            indptr int32 [block rows + 1].
        image: What x is, channels last.
        rows: Positions per tile, at most.
        lanes: Elements of one vector.
        tasks: Parallel tasks; they share the lines of the output.
    """
    _, bw, bh = operands[0][1].shape
    block_rows = len(operands[2][1]) - 1
    overhang = block_rows * bh - problem.n
    conv, channels = image.conv, image.channels
    (kh, _), (sh, sw), (dh, _) = conv.kernel, conv.strides, conv.dilations
    oh, ow = conv.output_size(image.height, image.width)
    positions = positions_of(ow, rows)
    span, line_length = span_of(conv, positions), copied_line(image, positions) * channels
    tiles = -(-ow // positions)
    vectors = pieces(bh, lanes)
    chains = max(1, min(bw, 8 // (positions * len(vectors))))

    def body(args: Arguments) -> None:
        lines = T.floordiv(T.int64(args.m), T.int64(ow))

        def task(p: Expr) -> None:
            all_tiles = T.serial(0, T.int64(tiles))
            with emit.opaque():
                room = (kh - 1) * dh * line_length + span * channels
                copied = T.sblock_alloc_buffer((room,), "float32") if any(conv.pads) else None
                with emit.loop(*emit.share(lines, p, tasks)) as line, all_tiles as index:
                    one_tile(args, copied, line, T.bind(emit.tile_start(ow, positions, index)))

        emit.parallel_tasks(tasks, task)

    def one_tile(args: Arguments, copied: Buffer | None, line: Expr, first: Expr) -> None:
        with emit.opaque():
            batch = T.bind(T.floordiv(line, T.int64(oh)))
            top = T.bind(T.floormod(line, T.int64(oh)) * sh - conv.pads[0])
            left = T.bind(first * sw - conv.pads[1])
            row = T.bind(line * ow + first)

            def from_image() -> None:
                corner = T.bind((top * image.width + left) * channels)
                all_outputs(args, args.x, (batch,), corner, row)

            def from_copy() -> None:
                copy_windows(args, copied, batch, top, left)
                all_outputs(args, copied, (), T.int64(0), row)

            if copied is None:
                from_image()
            elif span > image.width or kh * dh - dh >= image.height:  # no tile fits inside
                from_copy()
            else:
                lowest, rightmost = image.height - (kh - 1) * dh, image.width - span + 1
                rows_fit = T.And(top >= 0, top < lowest)
                with T.If(T.And(rows_fit, T.And(left >= 0, left < rightmost))):
                    with T.Then():
                        from_image()
                    with T.Else():
                        from_copy()

    def copy_windows(args: Arguments, copied: Buffer, batch: Expr, top: Expr, left: Expr) -> None:
        """The part of the image under a tile's windows, zero where there is no image."""
        with T.serial(0, T.int64(kh)) as p, T.serial(0, T.int64(span)) as j, emit.opaque():
            row, column = T.bind(top + p * dh), T.bind(left + j)
            place = T.bind(p * (dh * line_length) + j * channels)
            inside = T.And(row >= 0, row < image.height)
            with T.If(T.And(inside, T.And(column >= 0, column < image.width))):
                with T.Then():
                    start = T.bind((row * image.width + column) * channels)
                    for_channels(
                        lambda at, size: emit.store(
                            copied,
                            emit.load(args.x, batch, start + at, lanes=size),
                            place + at,
                            lanes=size,
                        )
                    )
                with T.Else():
                    for_channels(
                        lambda at, size: emit.store(
                            copied, emit.constant(0.0, size), place + at, lanes=size
                        )
                    )

    def for_channels(move: Callable[[Expr, int], None]) -> None:
        """Vectors that cover the channels of one position."""
        whole = channels - channels % lanes
        with T.serial(0, T.int64(whole // lanes)) as vector:
            move(vector * lanes, lanes)
        for at, size in pieces(channels - whole, lanes):
            move(T.int64(whole + at), size)

    def all_outputs(
        args: Arguments, source: Buffer, where: tuple[Expr, ...], corner: Expr, row: Expr
    ) -> None:
        with T.serial(0, T.int64(block_rows)) as block_row, emit.opaque():
            outputs(args, source, where, corner, row, T.bind(block_row))

    def outputs(
        args: Arguments,
        source: Buffer,
        where: tuple[Expr, ...],
        corner: Expr,
        row: Expr,
        block_row: Expr,
    ) -> None:
        values, offsets, indptr = args.operands
        sums = [emit.accumulators(positions, bh) for _ in range(chains)]

        def accumulate(rows_of: list[Buffer], block: Expr, inner: Expr) -> None:
            start = T.bind(corner + T.cast(offsets[block, inner], "int64"))
            for at, size in vectors:
                weight = T.bind(emit.weights(values, block, inner, at, lanes=size))
                for r, acc in enumerate(rows_of):
                    value = source[(*where, start + r * (sw * channels))]
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
    shape = (batch, image.height * image.width * channels)
    return emit.generate("block_sparse_conv", problem, operands, body, x_shape=shape)

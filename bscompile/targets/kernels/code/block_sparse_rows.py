"""y = x Wᵀ for a block-sparse weight, vectorised over rows of x; fast for any block size.

A tile of rows is transposed into a buffer in cache, so that one input of all its rows is a few
vectors. For each live block: a broadcast of each weight and multiply-adds with those vectors.
The sums, one set of vectors per output, are transposed back where they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import block_sparse_outputs, emit
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish, finish_tile
from bscompile.targets.kernels.code.transpose import transpose_rows, transposed

_UNROLL = 4  # inputs of a block that are unrolled; wider blocks loop. More never helped, and
# LLVM makes slow code of two steps of eight on four vectors.
_AHEAD = 4 << 10  # bytes from the weights in work to those asked for. In a model each layer's come
# from memory, which the processor's own guesses reach too late: a tenth of the layer's time.
_LEAST = 16 << 10  # bytes of a weight that asks: less stays in the nearest cache
_CHUNK = 16  # outputs that are transposed back together, at least


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    vectors: int,
    lanes: int,
    tasks: int,
    split: str,
) -> Any:
    """The kernel.

    Args:
        problem: The layer.
        operands: As of block_sparse_outputs, whose kernel serves what has too few rows.
        vectors: A tile of x has ``vectors * lanes`` rows.
        lanes: Elements of one vector.
        tasks: Parallel tasks.
        split: What the tasks share: ``rows``, or ``outputs`` by bounds.
    """
    _, bw, bh = operands[0][1].shape
    values_bytes = operands[0][1].nbytes
    block_rows = len(operands[2][1]) - 1
    rows = vectors * lanes
    chunk = lcm(bh, lanes) // bh
    chunk *= -(-_CHUNK // (chunk * bh))
    few = block_sparse_outputs.Nest(problem, operands, lanes, tasks, "outputs", "rows")

    def body(args: Arguments) -> None:
        emit.for_rows_of(
            args, (rows, 8, 1), lambda r: nest(args) if r == rows else few.emit(args, r)
        )

    def nest(args: Arguments) -> None:
        tiles = T.int64(emit.tile_count(args.m, rows))
        bounds = args.operands[3]

        def task(p: Expr) -> None:
            ranges = emit.ranges_of(p, tasks, split, tiles, block_rows, bounds)
            tile_range, row_range = ranges
            with emit.opaque():
                columns = T.sblock_alloc_buffer((problem.k, rows), "float32")
                sums = T.sblock_alloc_buffer((chunk * bh, rows), "float32")
                with emit.loop(*tile_range) as tile, emit.opaque():
                    row = T.bind(emit.tile_start(args.m, rows, tile))
                    transpose_rows(args.x, row, rows, lanes, columns)
                    outputs(args, row, row_range, columns, sums)

        emit.parallel_tasks(tasks, task)

    def outputs(
        args: Arguments, row: Expr, row_range: tuple[Expr, Expr], columns: Buffer, sums: Buffer
    ) -> None:
        first, last = row_range
        with T.serial(0, T.floordiv(last - first + (chunk - 1), T.int64(chunk))) as index:
            begin = first + index * chunk
            count = T.min(last - begin, T.int64(chunk))
            with T.serial(0, count) as local, emit.opaque():
                block_row(args, T.bind(begin + local), local, columns, sums)
            width = T.min(count * bh, T.int64(problem.n) - begin * bh)
            write(args, row, begin * bh, width, sums)

    def block_row(args: Arguments, which: Expr, local: Expr, columns: Buffer, sums: Buffer) -> None:
        values, starts, indptr, _ = args.operands
        held = emit.accumulators(bh, rows)
        for acc in held:
            for v in range(vectors):
                emit.store(acc, emit.constant(0.0, lanes), v * lanes, lanes=lanes)

        def accumulate(block: Expr, start: Expr, inner: Expr) -> None:
            column = [
                T.bind(emit.load(columns, start + inner, v * lanes, lanes=lanes))
                for v in range(vectors)
            ]
            for r, acc in enumerate(held):
                weight = emit.splat(emit.weights(values, block, inner, r, lanes=1), lanes)
                for v, x in enumerate(column):
                    total = emit.load(acc, v * lanes, lanes=lanes) + weight * x
                    emit.store(acc, total, v * lanes, lanes=lanes)

        with emit.loop(indptr[which], indptr[which + 1]) as index:
            block = T.bind(T.cast(index, "int64"))
            start = T.bind(T.cast(starts[block], "int64"))
            if values_bytes >= _LEAST:
                emit.fetch_ahead(values, block * (bw * bh), bw * bh, _AHEAD)
            loops = bw // _UNROLL if bw > _UNROLL else 0
            if loops:
                with T.serial(0, T.int64(loops)) as step:
                    for u in range(_UNROLL):
                        accumulate(block, start, step * _UNROLL + u)
            for inner in range(loops * _UNROLL, bw):
                accumulate(block, start, T.int64(inner))
        for r, acc in enumerate(held):
            for v in range(vectors):
                value = emit.load(acc, v * lanes, lanes=lanes)
                emit.store(sums, value, local * bh + r, v * lanes, lanes=lanes)

    def write(args: Arguments, row: Expr, column: Expr, width: Expr, sums: Buffer) -> None:
        """Transpose sums[:width] back, in squares; the last one overlaps its neighbour."""
        with T.If(width >= lanes):
            with T.Then():
                groups = T.floordiv(width + (lanes - 1), T.int64(lanes))
                with T.serial(0, groups) as group, T.serial(0, vectors) as v, emit.opaque():
                    at = T.bind(T.min(group * lanes, width - lanes))
                    square = [emit.load(sums, at + i, v * lanes, lanes=lanes) for i in range(lanes)]
                    turned = transposed(square)
                    to = (row + v * lanes, column + at)
                    finish_tile(args, lanes, [(0, lanes)], lambda r, *_: turned[r], *to)
            with T.Else(), T.serial(0, width) as i, T.serial(0, rows) as r, emit.opaque():
                finish(args, T.bind(sums[i, r]), row + r, column + i, 1)

    return emit.generate("block_sparse_rows", problem, operands, body)

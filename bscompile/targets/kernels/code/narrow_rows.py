"""y = x Wᵀ in bfloat16 or int8 for small blocks: lanes over rows of x.

The loops are those of block_sparse_rows.py on words: two bfloat16 or four 8-bit inputs of one row
in 32 bits. A tile of prepared rows is transposed, so that one word of all its rows is a few
vectors; each word of weights is broadcast against them. So blocks of any height run at full rate
whose width, and k, are whole words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dot import Product
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish, finish_tile
from bscompile.targets.kernels.code.narrow import Nest
from bscompile.targets.kernels.code.narrow_inputs import Inputs, Preparation, quantizer
from bscompile.targets.kernels.code.transpose import transposed

_UNROLL = 8  # words of a block that are unrolled; wider blocks loop
_CHUNK = 64  # outputs that are transposed back together, at least


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    product: Product,
    vectors: int,
    lanes: int,
    tasks: int,
    split: str,
) -> Any:
    """The kernel.

    Args:
        problem: The layer, block-sparse.
        operands: As of narrow.py, whose kernel serves what has too few rows.
        product: An instruction on words.
        vectors: A tile of x has ``vectors * lanes`` rows.
        lanes: 32-bit elements of one vector.
        tasks: Parallel tasks.
        split: What the tasks share: ``rows``, or ``outputs`` by bounds.
    """
    kernel = _Rows(problem, operands, product, vectors, lanes, tasks, split)
    few = Nest(problem, operands, product, lanes, tasks, split, "rows")
    mode = problem.activation or "round"

    def body(args: Arguments) -> None:
        with emit.opaque():
            if product.llvm:
                T.sblock_attr({"pragma_import_llvm": product.llvm})
            x = Preparation(args, product, mode, tasks)
            if not few.own_rows:
                x.all_rows()
            if problem.y_dtype != "float32":
                args = replace(args, leave=quantizer(args.operands[-1], problem.y_dtype))

            def tiles(rows: int) -> None:
                if rows == vectors * lanes:
                    kernel.emit(args, x, few.own_rows)
                else:
                    few.emit(args, x, rows)

            emit.for_rows_of(args, (vectors * lanes, 8, 1), tiles)

    return emit.generate(f"narrow_rows_{problem.dtype}", problem, operands, body)


class _Rows:
    """The loops over tiles of rows and block rows; arguments as of ``generate``."""

    def __init__(
        self,
        problem: Problem,
        operands: Sequence[tuple[str, Array]],
        product: Product,
        vectors: int,
        lanes: int,
        tasks: int,
        split: str,
    ) -> None:
        self._product, self._problem = product, problem
        self._vectors, self._lanes, self._rows = vectors, lanes, vectors * lanes
        self._tasks, self._split = tasks, split
        self._steps = operands[0][1].shape[1]
        self._bh = min(problem.block[0], problem.n)
        self._block_rows = len(operands[2][1]) - 1
        self._words = problem.k // product.group
        self._chunk = lcm(self._bh, lanes) // self._bh  # block rows that are written together
        self._chunk *= -(-_CHUNK // (self._chunk * self._bh))

    def emit(self, args: Arguments, x: Preparation, own_rows: bool) -> None:
        """Emit the loops; each task prepares its ``own_rows`` of x, or finds all prepared."""
        tiles = T.int64(emit.tile_count(args.m, self._rows))
        bounds = args.operands[3]

        def task(p: Expr) -> None:
            ranges = emit.ranges_of(p, self._tasks, self._split, tiles, self._block_rows, bounds)
            tile_range, row_range = ranges
            with emit.opaque():
                columns = T.sblock_alloc_buffer((self._words, self._rows), "int32")
                shape = (self._chunk * self._bh, self._rows)
                sums = T.sblock_alloc_buffer(shape, self._product.total)
                with emit.loop(*tile_range) as tile, emit.opaque():
                    row = T.bind(emit.tile_start(args.m, self._rows, tile))
                    if own_rows:
                        x.rows(row, row + self._rows)
                    self._transpose(x.inputs.x, row, columns)
                    self._outputs(args, x.inputs, row, row_range, columns, sums)

        emit.parallel_tasks(self._tasks, task)

    def _transpose(self, x: Buffer, row: Expr, columns: Buffer) -> None:
        """columns[c, r] = word c of row r."""
        group, lanes = self._product.group, self._lanes
        if self._words < lanes:
            with T.serial(0, self._words) as c, T.serial(0, self._rows) as r, emit.opaque():
                word = T.reinterpret("int32", emit.load(x, row + r, c * group, lanes=group))
                T.buffer_store(columns, word, [c, r])
            return
        with T.serial(0, T.int64(-(-self._words // lanes))) as index, emit.opaque():
            c = T.bind(T.min(index * lanes, T.int64(self._words - lanes)))
            for at in range(0, self._rows, lanes):
                square = [
                    T.reinterpret(
                        f"int32x{lanes}",
                        emit.load(x, row + at + r, c * group, lanes=lanes * group),
                    )
                    for r in range(lanes)
                ]
                for i, vector in enumerate(transposed(square)):
                    emit.store(columns, vector, c + i, at, lanes=lanes)

    def _outputs(
        self,
        args: Arguments,
        inputs: Inputs,
        row: Expr,
        row_range: tuple[Expr, Expr],
        columns: Buffer,
        sums: Buffer,
    ) -> None:
        first, last = row_range
        chunk, bh = self._chunk, self._bh
        with T.serial(0, T.floordiv(last - first + (chunk - 1), T.int64(chunk))) as index:
            begin = first + index * chunk
            count = T.min(last - begin, T.int64(chunk))
            with T.serial(0, count) as local, emit.opaque():
                self._block_row(args, T.bind(begin + local), local, columns, sums)
            width = T.min(count * bh, T.int64(self._problem.n) - begin * bh)
            self._write(args, inputs, row, begin * bh, width, sums)

    def _block_row(
        self, args: Arguments, which: Expr, local: Expr, columns: Buffer, sums: Buffer
    ) -> None:
        values, starts, indptr = args.operands[:3]
        product, lanes = self._product, self._lanes
        held = emit.accumulators(self._bh, self._rows, product.total)
        zero = T.float32(0) if product.total == "float32" else T.int32(0)
        for acc in held:
            for v in range(self._vectors):
                emit.store(acc, emit.splat(zero, lanes), v * lanes, lanes=lanes)

        def accumulate(block: Expr, word: Expr, step: Expr) -> None:
            column = [
                T.bind(emit.load(columns, word + step, v * lanes, lanes=lanes))
                for v in range(self._vectors)
            ]
            for r, acc in enumerate(held):
                weight = emit.splat(values[block, step, r], lanes)
                for v, x in enumerate(column):
                    total = emit.load(acc, v * lanes, lanes=lanes)
                    total = product.multiply_add(total, x, weight, lanes)
                    emit.store(acc, total, v * lanes, lanes=lanes)

        with emit.loop(indptr[which], indptr[which + 1]) as index:
            block = T.bind(T.cast(index, "int64"))
            word = T.bind(T.floordiv(T.cast(starts[block], "int64"), T.int64(product.group)))
            loops = self._steps // _UNROLL if self._steps > _UNROLL else 0
            if loops:
                with T.serial(0, T.int64(loops)) as outer:
                    for u in range(_UNROLL):
                        accumulate(block, word, outer * _UNROLL + u)
            for step in range(loops * _UNROLL, self._steps):
                accumulate(block, word, T.int64(step))
        for r, acc in enumerate(held):
            for v in range(self._vectors):
                value = emit.load(acc, v * lanes, lanes=lanes)
                emit.store(sums, value, local * self._bh + r, v * lanes, lanes=lanes)

    def _write(
        self, args: Arguments, inputs: Inputs, row: Expr, column: Expr, width: Expr, sums: Buffer
    ) -> None:
        """Transpose sums[:width] back, in squares; the last one overlaps its neighbour."""
        lanes = self._lanes
        with T.If(width >= lanes):
            with T.Then():
                groups = T.floordiv(width + (lanes - 1), T.int64(lanes))
                with (
                    T.serial(0, groups) as group,
                    T.serial(0, self._vectors) as v,
                    emit.opaque(),
                ):
                    at = T.bind(T.min(group * lanes, width - lanes))
                    square = [emit.load(sums, at + i, v * lanes, lanes=lanes) for i in range(lanes)]
                    turned = transposed(square)
                    to = (row + v * lanes, column + at)

                    def value(r: int, offset: int, size: int) -> Expr:
                        return inputs.real(args, turned[r], to[0] + r, to[1] + offset, size)

                    finish_tile(args, lanes, [(0, lanes)], value, *to)
            with T.Else(), T.serial(0, width) as i, T.serial(0, self._rows) as r, emit.opaque():
                real = inputs.real(args, sums[i, r], row + r, column + i, 1)
                finish(args, T.bind(real), row + r, column + i, 1)

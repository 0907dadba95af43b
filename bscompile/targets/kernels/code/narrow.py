"""y = x Wᵀ in bfloat16 or int8, several inputs a step, lanes over the outputs of a block row.

The loops are those of block_sparse_outputs.py; a dense weight is a block-sparse one with a
single block as wide as W in each block row. Sums are float32 or int32; of the latter comes

    y = s[row] scale[out] (sum - z[row] Σ w[out])

with s and z of x's quantisation and Σ w of the whole row of W, computed at build. Then the
epilogue, and where y leaves in 8 bits its quantisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.chunks import Kept, Sums
from bscompile.targets.kernels.code.dot import Product
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish_tile
from bscompile.targets.kernels.code.narrow_inputs import Inputs, Preparation, quantizer
from bscompile.targets.kernels.prefetch import comes_from_memory, usual
from bscompile.targets.kernels.vectors import inputs_together, pieces

UNROLL = 8  # steps of a block that are unrolled; wider blocks loop
_CHAINS = 8  # independent sums that hide the latency of the instruction
_BLOCKS = 4  # that are taken at once where each has too few steps for so many sums


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    product: Product,
    rows: int,
    lanes: int,
    tasks: int,
    split: str,
    outer: str,
    chunks: int = 1,
) -> Any:
    """The kernel.

    Args:
        problem: The layer.
        operands: As packed by ``packing_narrow``: values [nnzb, steps, height] (times group
            where the product stores int8), starts int32 [nnzb], indptr, bounds; for int8 also
            scale float32 [n], sums int32 [n] and constants float32 [6], see ``pack_int8``.
        product: The instruction.
        rows: Rows of x per tile.
        lanes: 32-bit elements of one vector.
        tasks: Parallel tasks.
        split: What the tasks share: ``outputs`` by bounds, or ``rows``.
        outer: Which loop is outside: ``rows`` or ``outputs``.
        chunks: Chunks of columns that are packed one after the other; with more than one, all of
            x is one tile.
    """
    nest = _nest_of(product)(problem, operands, product, lanes, tasks, split, outer, chunks)
    mode = problem.activation or "round"

    def body(args: Arguments) -> None:
        with emit.opaque():
            if product.llvm:
                T.sblock_attr({"pragma_import_llvm": product.llvm})
            x = Preparation(args, product, mode, tasks)
            if not nest.own_rows:
                x.all_rows()
            if problem.y_dtype != "float32":
                args = replace(args, leave=quantizer(args.operands[-1], problem.y_dtype))
            emit.for_rows_of(args, (rows, 4), lambda r: nest.emit(args, x, r))

    return emit.generate(f"narrow_{problem.dtype}", problem, operands, body)


def _nest_of(product: Product) -> type[Nest]:
    """The loops that a product wants."""
    from bscompile.targets.kernels.code.narrow_pairs import PairNest

    return PairNest if product.pairs else Nest


class Nest:
    """The loops over row tiles and block rows; arguments as of ``generate``."""

    def __init__(
        self,
        problem: Problem,
        operands: Sequence[tuple[str, Array]],
        product: Product,
        lanes: int,
        tasks: int,
        split: str,
        outer: str,
        chunks: int = 1,
    ) -> None:
        self._product, self._problem, self._chunks = product, problem, chunks
        self._values = operands[0][1]
        self._steps = self._values.shape[1]
        self._height = self._values.shape[2] // product.stored_numbers  # of a block, padded
        self._bh = min(problem.block[0], problem.n) if problem.form != "dense" else self._height
        self._block_rows = (len(operands[2][1]) - 1) // chunks
        self._last = problem.n - (self._block_rows - 1) * self._bh  # outputs of the last row
        self._lanes, self._tasks, self._split, self._outer = lanes, tasks, split, outer
        self._together = 1 if product.pairs else inputs_together(self._height, self._steps, lanes)
        self._ahead = usual(self._values[0].nbytes) << 10 if chunks == 1 else 0
        #: Whether no two tasks read the same rows of x, so that each prepares its own.
        self.own_rows = tasks == 1 or split == "rows"

    def emit(self, args: Arguments, x: Preparation, rows: int) -> None:
        """Emit the loops for tiles of ``rows`` rows."""
        if self._chunks > 1:
            self._emit_chunks(args, x, rows)
            return
        tiles = T.int64(emit.tile_count(args.m, rows))
        bounds = args.operands[3]
        rows_outside = self._outer == "rows"

        def task(p: Expr) -> None:
            ranges = emit.ranges_of(p, self._tasks, self._split, tiles, self._block_rows, bounds)
            tile_range, row_range = ranges
            if rows_outside:
                with emit.loop(*tile_range) as tile, emit.opaque():
                    row = T.bind(emit.tile_start(args.m, rows, tile))
                    if self.own_rows:
                        x.rows(row, row + rows)
                    with emit.loop(*row_range) as block_row, emit.opaque():
                        self._tile(args, x.inputs, rows, T.bind(block_row), row)
                return
            if self.own_rows:
                with emit.loop(*tile_range) as tile, emit.opaque():
                    row = T.bind(emit.tile_start(args.m, rows, tile))
                    x.rows(row, row + rows)
            with emit.loop(*row_range) as block_row, emit.loop(*tile_range) as tile, emit.opaque():
                row = T.bind(emit.tile_start(args.m, rows, tile))
                self._tile(args, x.inputs, rows, T.bind(block_row), row)

        emit.parallel_tasks(self._tasks, task)

    def _emit_chunks(self, args: Arguments, x: Preparation, rows: int) -> None:
        bounds, row, inputs = args.operands[3], T.int64(0), x.inputs
        kept = Kept(
            self._chunks, self._block_rows, rows, self._height, self._lanes, self._product.total
        )

        def task(p: Expr) -> None:
            if self.own_rows:
                x.rows(row, T.int64(rows))
            kept.emit(
                (T.cast(bounds[p], "int64"), T.cast(bounds[p + 1], "int64")),
                lambda packed: self._sums(args, inputs, rows, T.bind(packed), row),
                lambda block_row, sums: self._outputs(args, inputs, rows, sums, block_row, row),
            )

        emit.parallel_tasks(self._tasks, task)

    def _tile(self, args: Arguments, inputs: Inputs, rows: int, block_row: Expr, row: Expr) -> None:
        sums = self._sums(args, inputs, rows, block_row, row)
        self._outputs(args, inputs, rows, sums, block_row, row)

    def _sums(self, args: Arguments, inputs: Inputs, rows: int, block_row: Expr, row: Expr) -> Sums:
        """Emit the product of a block row as it is packed; its sums."""
        values, starts, indptr, _ = args.operands[:4]
        product, together = self._product, self._together
        steps, wide = self._steps // together, self._height * together
        vectors = pieces(wide, self._lanes)
        # Two instructions on half a register begin in each cycle; there are 32 of 16 lanes.
        twice = self._lanes == 16 and vectors[0][1] < self._lanes
        wanted = max(1, _CHAINS * (2 if twice else 1) // (rows * len(vectors)))
        at_once = max(1, min(_BLOCKS, wanted // steps))
        chains = min(wanted, at_once * steps)
        sums = [emit.accumulators(rows, wide, product.total) for _ in range(chains)]
        zero = T.float32(0) if product.total == "float32" else T.int32(0)

        def accumulate(rows_of: list[Buffer], block: Expr, start: Expr, step: Expr) -> None:
            first = step * together
            column = start + first * product.group
            for at, size in vectors:
                weight = T.bind(product.load(values, block, first, at, size))
                for r, acc in enumerate(rows_of):
                    x = product.spread(inputs.x, row + r, column, together, size)
                    total = emit.load(acc, at, lanes=size)
                    emit.store(acc, product.multiply_add(total, x, weight, size), at, lanes=size)

        for rows_of in sums:
            for acc in rows_of:
                for at, size in vectors:
                    emit.store(acc, emit.splat(zero, size), at, lanes=size)

        def one_block(index: Expr, place: int) -> None:
            block = T.bind(T.cast(index, "int64"))
            start = T.bind(T.cast(starts[block], "int64"))
            loops = steps // UNROLL if steps > UNROLL else 0
            size = self._steps * int(values.shape[2])
            if self._ahead and comes_from_memory(self._values.nbytes, args.m, rows):
                emit.fetch_ahead(values, block * size, size, self._ahead)
            if loops:
                with T.serial(0, T.int64(loops)) as outer:
                    for u in range(UNROLL):
                        accumulate(sums[u % chains], block, start, outer * UNROLL + u)
            for step in range(loops * UNROLL, steps):
                which = (place * steps + step) % chains
                accumulate(sums[which], block, start, T.int64(step))

        emit.loop_by(indptr[block_row], indptr[block_row + 1], at_once, one_block)
        return lambda r, at, size: emit.total([rows_of[r] for rows_of in sums], at, size, together)

    def _outputs(
        self,
        args: Arguments,
        inputs: Inputs,
        rows: int,
        sums: Sums,
        block_row: Expr,
        row: Expr,
    ) -> None:
        column = T.bind(block_row * self._bh)

        def value(r: int, at: int, size: int) -> Expr:
            return inputs.real(args, sums(r, at, size), row + r, column + at, size)

        def write(count: int) -> None:
            finish_tile(args, rows, pieces(count, self._lanes), value, row, column)

        if self._last == self._bh:
            write(self._bh)
            return
        with T.If(block_row < self._block_rows - 1):
            with T.Then():
                write(self._bh)
            with T.Else():
                write(self._last)

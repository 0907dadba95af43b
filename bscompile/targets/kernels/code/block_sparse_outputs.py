"""y = x Wᵀ for a block-sparse weight, vectorised over the outputs of a block row.

One block row of W times a tile of rows of x is accumulated in registers. For each live block and
each of its inputs: one vector of weights, and for each row one broadcast of x and a multiply-add.
Of blocks that are low against a register it takes several inputs at once, all outputs of the first,
then of the second; their sums are added up where the block row ends. Weights from memory may be
taken a chunk of columns at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.chunks import Kept, Sums
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish_tile
from bscompile.targets.kernels.prefetch import comes_from_memory
from bscompile.targets.kernels.vectors import inputs_together, pieces

LARGE = 16 << 10  # bytes of a tile of x that will not be in the nearest cache when its turn comes
UNROLL = 16  # inputs of a block that are unrolled; wider blocks loop


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    rows: int,
    lanes: int,
    tasks: int,
    split: str,
    outer: str,
    ahead: int,
    chunks: int = 1,
) -> Any:
    """The kernel.

    Args:
        problem: The layer.
        operands: values [nnzb, bw, bh]; starts [nnzb], the first input of each block; indptr int32
            [chunks * block rows + 1]; bounds int32 [tasks + 1], the block rows of each task.
        rows: Rows of x per tile.
        lanes: Elements of one vector.
        tasks: Parallel tasks.
        split: What the tasks share: ``outputs`` by bounds, or ``rows``.
        outer: Which loop is outside: ``rows`` keeps a tile of x in the nearest cache and streams
            the weights, ``outputs`` the other way round.
        ahead: Bytes to ask ahead where weights come from memory; 0 for not asking.
        chunks: Chunks of columns that are packed one after the other; with more than one, all of
            x is one tile.
    """
    nest = Nest(problem, operands, lanes, tasks, split, outer, ahead, chunks)

    def body(args: Arguments) -> None:
        emit.for_rows_of(args, (rows, 4), lambda r: nest.emit(args, r))

    return emit.generate("block_sparse_outputs", problem, operands, body)


class Nest:
    """The loops over row tiles and block rows; arguments as of ``generate``."""

    def __init__(
        self,
        problem: Problem,
        operands: Sequence[tuple[str, Array]],
        lanes: int,
        tasks: int,
        split: str,
        outer: str,
        ahead: int = 0,
        chunks: int = 1,
    ) -> None:
        self._values = operands[0][1]
        _, self._bw, self._bh = self._values.shape
        self._chunks = chunks
        self._block_rows = (len(operands[2][1]) - 1) // chunks
        self._overhang = self._block_rows * self._bh - problem.n
        self._lanes, self._tasks, self._split, self._outer = lanes, tasks, split, outer
        self._vectors, self._ahead = pieces(self._bh, lanes), ahead
        self._together = inputs_together(self._bh, self._bw, lanes)

    def emit(self, args: Arguments, rows: int) -> None:
        """Emit the loops for tiles of ``rows`` rows."""
        if self._chunks > 1:
            self._emit_chunks(args, rows)
            return
        tiles = T.int64(emit.tile_count(args.m, rows))
        bounds = args.operands[3]
        rows_outside = self._outer == "rows"
        more = not isinstance(args.m, int) or args.m > rows

        def task(p: Expr) -> None:
            ranges = emit.ranges_of(p, self._tasks, self._split, tiles, self._block_rows, bounds)
            tile_range, row_range = ranges
            first, second = (tile_range, row_range) if rows_outside else (row_range, tile_range)
            with emit.loop(*first) as i, emit.loop(*second) as j, emit.opaque():
                tile, block_row = (i, j) if rows_outside else (j, i)
                row = T.bind(emit.tile_start(args.m, rows, tile))
                if rows_outside and 4 * rows * int(args.x.shape[1]) >= LARGE and more:
                    self._fetch_next(args, rows, block_row, row)
                which = T.bind(block_row)
                self._outputs(args, rows, self._product(args, rows, which, row), which, row)

        emit.parallel_tasks(self._tasks, task)

    def _fetch_next(self, args: Arguments, rows: int, block_row: Expr, row: Expr) -> None:
        """Ask for a block row's share of the next tile of x, which blocks read in no order."""
        k = int(args.x.shape[1])
        share = -(-k // max(1, self._block_rows))
        for r in range(rows):
            at = (row + (rows + r)) * k + T.cast(block_row, "int64") * share
            emit.fetch_ahead(args.x, at, share, 0)

    def _emit_chunks(self, args: Arguments, rows: int) -> None:
        bounds, row = args.operands[3], T.int64(0)
        with emit.opaque():
            kept = Kept(self._chunks, self._block_rows, rows, self._bh, self._lanes, "float32")

            def task(p: Expr) -> None:
                kept.emit(
                    (T.cast(bounds[p], "int64"), T.cast(bounds[p + 1], "int64")),
                    lambda packed: self._product(args, rows, T.bind(packed), row),
                    lambda block_row, sums: self._outputs(args, rows, sums, block_row, row),
                )

            emit.parallel_tasks(self._tasks, task)

    def _product(self, args: Arguments, rows: int, block_row: Expr, row: Expr) -> Sums:
        """Emit the product of a block row as it is packed; its sums."""
        values, starts, indptr, _ = args.operands
        together, steps = self._together, self._bw // self._together
        wide = together * self._bh
        vectors = pieces(wide, self._lanes)
        chains = max(1, min(steps, 8 // (rows * len(vectors))))
        sums = [emit.accumulators(rows, wide) for _ in range(chains)]

        def accumulate(rows_of: list[Buffer], block: Expr, start: Expr, step: Expr) -> None:
            inner = step * together
            for at, size in vectors:
                weight = T.bind(emit.weights(values, block, inner, at, lanes=size))
                for r, acc in enumerate(rows_of):
                    x = emit.load(args.x, row + r, start + inner, lanes=together)
                    x = emit.spread(x, together, size)
                    emit.store(acc, emit.load(acc, at, lanes=size) + x * weight, at, lanes=size)

        for rows_of in sums:
            for acc in rows_of:
                for at, size in vectors:
                    emit.store(acc, emit.constant(0.0, size), at, lanes=size)
        with emit.loop(indptr[block_row], indptr[block_row + 1]) as index:
            block = T.bind(T.cast(index, "int64"))
            start = T.bind(T.cast(starts[block], "int64"))
            if self._ahead and comes_from_memory(self._values.nbytes, args.m, rows):
                size = self._bw * self._bh
                emit.fetch_ahead(values, block * size, size, self._ahead)
            loops = steps // UNROLL if steps > UNROLL else 0
            if loops:
                with T.serial(0, T.int64(loops)) as step:
                    for u in range(UNROLL):
                        accumulate(sums[u % chains], block, start, step * UNROLL + u)
            for step in range(loops * UNROLL, steps):
                accumulate(sums[step % chains], block, start, T.int64(step))

        return lambda r, at, size: emit.total([rows_of[r] for rows_of in sums], at, size, together)

    def _outputs(self, args: Arguments, rows: int, value: Sums, block_row: Expr, row: Expr) -> None:
        def write(cut: list[tuple[int, int]]) -> None:
            finish_tile(args, rows, cut, value, row, block_row * self._bh)

        if not self._overhang:
            write(self._vectors)
            return
        with T.If(block_row < self._block_rows - 1):
            with T.Then():
                write(self._vectors)
            with T.Else():
                write(pieces(self._bh - self._overhang, self._lanes))

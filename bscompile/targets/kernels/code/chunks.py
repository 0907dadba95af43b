"""Block rows that are multiplied a chunk of columns at a time, their sums kept in between."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Buffer, Expr
from bscompile.targets.kernels.vectors import pieces

Sums = Callable[[int, int, int], Expr]  # (row, offset, lanes) -> a vector of sums


class Kept:
    """The loops over chunks and block rows.

    Args:
        chunks: Chunks of columns, more than one; packed one after the other, see ``stacked``.
        block_rows: Block rows of W.
        rows: Rows of x.
        height: Outputs of a block row.
        lanes: Elements of one vector.
        dtype: Of the sums.
    """

    def __init__(
        self, chunks: int, block_rows: int, rows: int, height: int, lanes: int, dtype: str
    ) -> None:
        self._chunks, self._block_rows, self._rows, self._height = chunks, block_rows, rows, height
        self._cut = pieces(height, lanes)
        self._dtype = dtype
        self._sums: Buffer = T.sblock_alloc_buffer((rows, block_rows * height), dtype)

    def emit(
        self,
        block_rows: tuple[Expr, Expr],
        multiply: Callable[[Expr], Sums],
        finish: Callable[[Expr, Sums], None],
    ) -> None:
        """Emit the loops of one task.

        Args:
            block_rows: The range of its block rows.
            multiply: Emits the product of one block row of the packed, stacked weight.
            finish: (block row of W, sums) emits what follows.
        """
        with emit.loop(*block_rows) as r, emit.opaque():
            nothing = T.float32(0) if self._dtype == "float32" else T.int32(0)
            self._keep(r, lambda row, at, size: emit.splat(nothing, size))
        first = T.serial(0, T.int64(self._chunks - 1))
        with first as chunk, emit.loop(*block_rows) as r, emit.opaque():
            self._keep(r, self._added(r, multiply(chunk * self._block_rows + r)))
        with emit.loop(*block_rows) as r, emit.opaque():
            last = multiply((self._chunks - 1) * self._block_rows + r)
            finish(T.bind(r), self._added(r, last))

    def _keep(self, block_row: Expr, value: Sums) -> None:
        for row in range(self._rows):
            for at, size in self._cut:
                to = block_row * self._height + at
                emit.store(self._sums, value(row, at, size), row, to, lanes=size)

    def _added(self, block_row: Expr, value: Sums) -> Sums:
        def added(row: int, at: int, size: int) -> Expr:
            before = emit.load(self._sums, row, block_row * self._height + at, lanes=size)
            return before + value(row, at, size)

        return added

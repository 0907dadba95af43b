"""The factorized kernel with the pattern in its code: no index is read, no short loop is left.

Where a loop adds up one block row after another, the sum over q reads a vector for every
multiply-add. Here the sums of a group of block rows are in registers together and the code goes
over the columns: it reads a column's vector once, and each sum that wants it adds it, times a
coefficient whose place the instruction knows. By itself that takes a Zen 4 1.13 cycles for a
multiply-add, not 1.6; the price is code, about 12 bytes for each.

Tiles of fewer rows, where x has no more, read the pattern from the same operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish
from bscompile.targets.kernels.code.kronecker import Nest, Prepared
from bscompile.targets.kernels.vectors import pieces

_STEP = 4  # vectors of outputs that are finished by one step of a loop


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    rows: int,
    lanes: int,
    registers: int,
    tasks: int,
    split: str,
    order: str,
) -> Any:
    """The kernel; arguments as of kronecker.generate. Tasks share rows.

    The flat [rows, bh] of a tile (A first: [rows, bw]) is whole vectors, and one of bh (A first:
    bw) and ``lanes`` divides the other.
    """
    arguments = (problem, operands, rows, lanes, registers, tasks, split, order)
    read, written = Nest(*arguments), _Written(*arguments)

    def body(args: Arguments) -> None:
        emit.for_rows_of(args, (rows, 4), lambda r: (written if r == rows else read).tiles(args, r))

    return emit.generate("kronecker", problem, operands, body)


class _Written(Nest):
    """Overrides where the flat vectors lie and how they are summed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        sums = 1 if self.b_first else self.rank
        # Coefficients come as operands of the instruction, so nearly all registers hold sums.
        most = max(1, self.registers * 3 // 2 // sums)
        groups = -(-self.block_rows // most)
        self.chunk = -(-self.block_rows // groups)

    def _prepared(self, rows: int) -> Prepared:
        shape = (self._flat(rows) // self.lanes, self.block_cols * self.lanes)
        return Prepared(T.sblock_alloc_buffer(shape, "float32"), self.lanes)

    def _middle(self, rows: int) -> Buffer:
        return T.sblock_alloc_buffer((self.chunk, self.rank, rows * self.bw), "float32")

    def _outputs(
        self,
        args: Arguments,
        rows: int,
        row: Expr,
        row_range: tuple[Expr, Expr],
        prepared: Prepared,
        outputs: Buffer,
        middle: Buffer,
    ) -> None:
        for first in range(0, self.block_rows, self.chunk):
            count = min(self.chunk, self.block_rows - first)
            vectors = rows * (self.bh if self.b_first else self.bw) // self.lanes
            with T.serial(0, T.int64(vectors)) as v, emit.opaque():
                sums = self._column_sums(args, first, count, vectors, row, v, prepared)
                for (which, i), value in sums.items():
                    if self.b_first:
                        self._split_rows(value, v, which, outputs)
                    else:
                        emit.store(middle, value, which, i, v * self.lanes, lanes=self.lanes)
            if not self.b_first:
                with T.serial(0, T.int64(count)) as which:
                    self._times_factors(args, rows, which, which, middle, outputs)
            self._finish_rows(args, rows, row, first, count, outputs)

    def _column_sums(
        self,
        args: Arguments,
        first: int,
        count: int,
        vectors: int,
        row: Expr,
        v: Expr,
        prepared: Prepared,
    ) -> dict[tuple[int, int], Expr]:
        """Vector v of the sums of block rows first to first + count, by (block row, term).

        B first, a block row has one sum, of all its terms.
        """
        coefficients = args.operands[0]
        nought = self._nought(args, row + v)
        live = _columns(self.operands, first, count)
        terms = range(1 if self.b_first else self.rank)
        nothing = emit.constant(0.0, self.lanes)
        sums = {(which, i): nothing for which in range(count) for i in terms}
        for q, here in live.items():
            value = None
            for i in range(self.rank):
                if value is None or self.b_first:
                    at = (v + i * vectors) if self.b_first else v
                    value = T.bind(emit.load(prepared.buffer, at, q * self.lanes, lanes=self.lanes))
                for which, j in here:
                    key = which, 0 if self.b_first else i
                    a = emit.splat(emit.weights(coefficients, nought + j, i, lanes=1), self.lanes)
                    sums[key] = T.bind(sums[key] + a * value)
        return sums

    def _split_rows(self, value: Expr, v: Expr, which: int, outputs: Buffer) -> None:
        """Store vector v of a block row's flat [rows, bh] where ``outputs`` has its rows."""
        if self.bh >= self.lanes:
            parts = self.bh // self.lanes
            at = which * self.bh + T.floormod(v, T.int64(parts)) * self.lanes
            emit.store(outputs, value, T.floordiv(v, T.int64(parts)), at, lanes=self.lanes)
            return
        count = self.lanes // self.bh
        for r in range(count):
            part = emit.part(value, r * self.bh, self.bh)
            emit.store(outputs, part, v * count + r, which * self.bh, lanes=self.bh)

    def _finish_rows(
        self, args: Arguments, rows: int, row: Expr, first: int, count: int, outputs: Buffer
    ) -> None:
        """The epilogue of ``count`` block rows beginning with ``first``."""
        width, column = count * self.bh, first * self.bh
        step = _STEP * self.lanes

        def write(r: Expr, begin: Expr, size: int) -> None:
            with emit.opaque():
                for at, lanes in pieces(size, self.lanes):
                    value = T.bind(emit.load(outputs, r, begin + at, lanes=lanes))
                    finish(args, value, row + r, column + begin + at, lanes)

        with T.serial(0, T.int64(rows)) as r:
            if width >= step:
                with T.serial(0, T.int64(width // step)) as s:
                    write(r, s * step, step)
            if width % step:
                write(r, T.int64(width - width % step), width % step)


def _columns(
    operands: Sequence[tuple[str, Array]], first: int, count: int
) -> dict[int, list[tuple[int, int]]]:
    """Column -> (block row after ``first``, coefficient) of what ``count`` block rows have live."""
    (_, indices), (_, indptr) = operands[1], operands[2]
    found: dict[int, list[tuple[int, int]]] = {}
    for which in range(count):
        for j in range(int(indptr[first + which]), int(indptr[first + which + 1])):
            found.setdefault(int(indices[j]), []).append((which, j))
    return dict(sorted(found.items()))

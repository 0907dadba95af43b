"""How the outputs of a factorized layer leave: whole vectors of them, from several low blocks.

A block row has bh outputs of each row of a tile. Where they fill vectors they are finished as they
are. Of lower blocks, the sums of block rows side by side are joined into whole vectors in
registers, where registers hold them; else in a small buffer.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Arguments, Expr
from bscompile.targets.kernels.code.epilogue import finish, finish_tile
from bscompile.targets.kernels.vectors import joined, pieces

_CHAINS = 8  # independent sums of block products that hide the latency of the multiply-add
_TURN = 4  # block rows that A first sums before it multiplies by B

#: Outputs of one block row: (row, position in the block, lanes) -> that part of a vector.
Block = Callable[[int, int, int], Expr]


class Outputs:
    """Where the outputs of a tile go.

    Args:
        args: The kernel's parameters.
        b_first: Whether sums hold a block row's outputs of all rows flat, or row by row.
        rows: Rows of the tile.
        bh: Outputs of a block row.
        lanes: Elements of one vector.
        registers: Vectors of sums that registers hold.
        every: Block rows of the layer if each task has all of them, else 0.
    """

    def __init__(
        self,
        args: Arguments,
        b_first: bool,
        rows: int,
        bh: int,
        lanes: int,
        registers: int,
        every: int,
    ) -> None:
        self.args, self.b_first, self.rows, self.bh, self.lanes = args, b_first, rows, bh, lanes
        self.every = every
        self.joined = joined(bh, rows, b_first, lanes, registers)
        chunk = self.joined or -(-4 * lanes // bh)
        self.turn = chunk if b_first else max(chunk, _TURN // chunk * chunk)
        if not self.joined:
            self.kept = T.sblock_alloc_buffer((rows, self.turn * bh), "float32")

    def emit(
        self,
        row: Expr,
        row_range: tuple[Expr, Expr],
        before: Callable[[Expr, Expr], None] | None,
        some: Callable[..., None],
    ) -> None:
        """Emit the loop over block rows.

        Args:
            row: The tile's first row in y.
            row_range: First block row, and the one after the last.
            before: (first block row, count) starts a turn; None where nothing is to be done.
            some: (first block row, place in the turn, count, leave) calls leave with (first row,
                rows, blocks) for some rows of ``count`` block rows, until all are.
        """
        first, last = row_range
        size = self.turn if before or not self.joined else None

        def turn(begin: Expr, count: Expr) -> None:
            if before:
                before(begin, count)
            self._in_groups(
                count, lambda local, blocks: self._some(row, begin, local, blocks, some)
            )
            if not self.joined:
                self._finish(row, begin * self.bh, count)

        if size is None:
            turn(first, last - first)
            return
        with T.serial(0, T.floordiv(last - first + (size - 1), T.int64(size))) as index:
            begin = T.bind(first + index * size)
            turn(begin, T.bind(T.min(last - begin, T.int64(size))))

    def _some(
        self, row: Expr, begin: Expr, local: Expr, count: int, some: Callable[..., None]
    ) -> None:
        def leave(first: Expr, rows: int, blocks: list[Block]) -> None:
            if self.joined:
                self._finish_blocks(row + first, rows, (begin + local) * self.bh, blocks)
            else:
                self._keep(blocks[0], first, rows, local)

        some(begin, local, count, leave)

    def _in_groups(self, number: Expr, body: Callable[[Expr, int], None]) -> None:
        """``body(first, count)`` over a number of block rows: those joined, then one by one."""
        group = self.joined or 1
        whole = T.floordiv(number, T.int64(group))
        with T.serial(0, whole) as index, emit.opaque():
            body(index * group, group)
        if group > 1 and (not self.every or self.every % group):
            with emit.loop(whole * group, number) as local, emit.opaque():
                body(local, 1)

    def _finish_blocks(self, row: Expr, rows: int, column: Expr, blocks: list[Block]) -> None:
        """The epilogue of block rows side by side, whose outputs registers hold."""

        def value(r: int, at: int, size: int) -> Expr:
            if len(blocks) == 1:
                return blocks[0](r, at, size)
            return emit.joined([block(r, 0, self.bh) for block in blocks], self.bh)

        cut = pieces(len(blocks) * self.bh, self.lanes)
        finish_tile(self.args, rows, cut, value, row, column)

    def _keep(self, block: Block, first: Expr, rows: int, local: Expr) -> None:
        """A block row's outputs into the buffer, for rows from ``first`` on."""
        for r, at, size in self._parts(rows):
            to = local * self.bh + at
            emit.store(self.kept, block(r, at, size), first + r, to, lanes=size)

    def _parts(self, rows: int) -> list[tuple[int, int, int]]:
        """(row, position, lanes) of what one vector holds of one row."""
        if not self.b_first:
            return [(r, *piece) for r in range(rows) for piece in pieces(self.bh, self.lanes)]
        parts = []
        for position, size in pieces(rows * self.bh, self.lanes):
            for part, lanes in row_parts(position, size, self.bh):
                parts.append((*divmod(part, self.bh), lanes))
        return parts

    def _finish(self, row: Expr, column: Expr, count: Expr) -> None:
        """The epilogue of the buffer's ``count`` block rows beginning at output ``column``."""

        def write(width: int, offset: Expr) -> None:
            with T.serial(0, T.int64(self.rows)) as r, emit.opaque():
                for at, size in pieces(width, self.lanes):
                    value = T.bind(emit.load(self.kept, r, offset + at, lanes=size))
                    finish(self.args, value, row + r, column + offset + at, size)

        with T.If(count == self.turn):
            with T.Then():
                write(self.turn * self.bh, T.int64(0))
            with T.Else(), T.serial(0, count) as local:
                write(self.bh, local * self.bh)


def chains_of(bh: int, lanes: int) -> int:
    """Rows of one block's products that are accumulated together."""
    return max(1, _CHAINS // len(pieces(bh, lanes)))


def divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most ``most``."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def row_parts(position: int, size: int, height: int) -> list[tuple[int, int]]:
    """Cut a vector over the flat [rows, height] at row ends: (position, lanes)."""
    parts = []
    end = position + size
    while position < end:
        width = min(end, (position // height + 1) * height) - position
        parts += [(position + at, lanes) for at, lanes in pieces(width, size)]
        position += width
    return parts

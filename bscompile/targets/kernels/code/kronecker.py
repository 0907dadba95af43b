"""y = x Wᵀ for W = Σᵢ Aᵢ ⊗ Bᵢ, never building W.

With x as [rows, q, c] and y as [rows, p, d], y[., p, d] = Σᵢ Σ_q Aᵢ[p, q] Σ_c Bᵢ[d, c] x[., q, c].
For a tile of rows, either

* B first: Zᵢ[q] = x[., q, :] Bᵢᵀ into a buffer in cache, then y[p] = Σ A[p, q] Z[q]; or
* A first: Uᵢ = Σ A[p, q] x[., q, :] for a few p, then y[p] = Σᵢ Uᵢ Bᵢᵀ.

The sum over q multiplies by one scalar, so it treats a tile's [rows, d] (or [rows, c]) as flat:
every lane is used whatever the block size. Zero coefficients are skipped. This file has the loops
and the products with B; see kronecker_sums.py for the sums, kronecker_outputs.py for what leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.kronecker_outputs import Block, Outputs, chains_of, divisor
from bscompile.targets.kernels.code.kronecker_sums import Held, weighted_sums
from bscompile.targets.kernels.vectors import pieces

_COPIED = 8  # rows that are copied side by side


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
    """The kernel.

    Args:
        problem: The layer.
        operands: As of ``pack_factors``.
        rows: Rows of x per tile.
        lanes: Elements of one vector.
        registers: Vectors of sums that registers hold.
        tasks: Parallel tasks.
        split: What the tasks share: ``rows``, or ``outputs`` by bounds.
        order: ``b_first`` or ``a_first``.
    """
    return Nest(problem, operands, rows, lanes, registers, tasks, split, order).generate()


class Nest:
    """The loops; arguments as of ``generate``."""

    pair = 1  # sums of a block product for each output: see kronecker_narrow.py

    def __init__(
        self,
        problem: Problem,
        operands: Sequence[tuple[str, Array]],
        rows: int,
        lanes: int,
        registers: int,
        tasks: int,
        split: str,
        order: str,
    ) -> None:
        self.problem, self.operands = problem, operands
        self.rows, self.lanes, self.registers = rows, lanes, registers
        self.tasks, self.split = tasks, split
        self.b_first = order == "b_first"
        self.rank, self.bw, self.bh = (int(size) for size in operands[-2][1].shape)
        self.block_rows = len(operands[-3][1]) - 1
        self.block_cols = problem.k // self.bw

    def generate(self) -> Any:
        """The recipe of the kernel."""
        return emit.generate("kronecker", self.problem, self.operands, self._body)

    def _body(self, args: Arguments) -> None:
        emit.for_rows_of(args, (self.rows, 4), lambda r: self._tiles(args, r))

    def _tiles(self, args: Arguments, rows: int) -> None:
        """Emit the loops for tiles of ``rows`` rows."""
        tiles = T.int64(emit.tile_count(args.m, rows))

        def task(p: Expr) -> None:
            tile_range, row_range = emit.ranges_of(
                p, self.tasks, self.split, tiles, self.block_rows, args.operands[-1]
            )
            with emit.opaque():
                outputs = self._outputs(args, rows)
                prepared, middle = self._buffers(rows, outputs.turn)
                with emit.loop(*tile_range) as tile, emit.opaque():
                    row = T.bind(emit.tile_start(args.m, rows, tile))
                    self._prepare(args, rows, row, prepared, middle)
                    self._block_rows(args, rows, row, row_range, prepared, middle, outputs)

        emit.parallel_tasks(self.tasks, task)

    def _outputs(self, args: Arguments, rows: int) -> Outputs:
        aligned = self.split == "rows" and self.block_rows
        return Outputs(args, self.b_first, rows, self.bh, self.lanes, self.registers, aligned)

    def _buffers(self, rows: int, turn: int) -> tuple[Buffer, Buffer]:
        """What the sum over q reads of a tile, and what A first puts between it and B."""
        flat = rows * (self.bh * self.rank if self.b_first else self.bw)
        return (
            T.sblock_alloc_buffer((self.block_cols, flat), "float32"),
            T.sblock_alloc_buffer((turn * self.rank, rows * self.bw), "float32"),
        )

    def _prepare(
        self, args: Arguments, rows: int, row: Expr, prepared: Buffer, middle: Buffer
    ) -> None:
        """Fill ``prepared`` for the tile that begins at ``row``."""
        with T.serial(0, T.int64(self.block_cols)) as q:
            if self.b_first:
                self._block_products(args, rows, row, q, prepared)
            else:
                self._copy_inputs(args, rows, row, q, prepared)

    def _copy_inputs(
        self, args: Arguments, rows: int, row: Expr, q: Expr, prepared: Buffer
    ) -> None:
        """prepared[q, r, :] = x[row + r, q, :]."""
        group = divisor(rows, _COPIED)
        with T.serial(0, T.int64(rows // group)) as g, emit.opaque():
            for r in range(group):
                for at, size in pieces(self.bw, self.lanes):
                    value = emit.load(args.x, row + g * group + r, q * self.bw + at, lanes=size)
                    to = (g * group + r) * self.bw + at
                    emit.store(prepared, value, q, to, lanes=size)

    def _block_rows(
        self,
        args: Arguments,
        rows: int,
        row: Expr,
        row_range: tuple[Expr, Expr],
        prepared: Buffer,
        middle: Buffer,
        outputs: Outputs,
    ) -> None:
        """The outputs of a range of block rows of a tile, a turn of them at a time."""

        def before(begin: Expr, count: Expr) -> None:
            with T.serial(0, count) as local, emit.opaque():
                self._sum_inputs(args, rows, begin + local, local, prepared, middle)

        def some(begin: Expr, local: Expr, count: int, leave: Callable[..., None]) -> None:
            """``leave`` the outputs of ``count`` block rows."""
            if self.b_first:
                held = [
                    self._sum_products(args, rows, begin + local + place, prepared)
                    for place in range(count)
                ]
                leave(T.int64(0), rows, [self._flat_rows(sums) for sums in held])
                return
            group = self._group(rows, count)
            with T.serial(0, T.int64(rows // group)) as g, emit.opaque():
                sums = self._times_factors(args, count, group, g, local, middle)
                blocks = [sums[place * group : (place + 1) * group] for place in range(count)]
                leave(T.bind(g * group), group, [_rows_in(block) for block in blocks])

        outputs.emit(row, row_range, None if self.b_first else before, some)

    def _flat_rows(self, sums: Held) -> Block:
        return lambda r, at, size: sums(r * self.bh + at, size)

    def _group(self, rows: int, blocks: int = 1) -> int:
        """Rows whose products, of ``blocks`` blocks, are accumulated together."""
        return divisor(rows, max(1, chains_of(self.bh, self.lanes) // (self.pair * blocks)))

    def _sum_products(self, args: Arguments, rows: int, p: Expr, prepared: Buffer) -> Held:
        """Σ_q Σᵢ Aᵢ[p, q] prepared[q, i, r, :] of all rows."""
        width = rows * self.bh
        terms = [(i, i * width, 0) for i in range(self.rank)]
        return weighted_sums(args, width, self.lanes, p, prepared, terms)[0]

    def _sum_inputs(
        self, args: Arguments, rows: int, p: Expr, local: Expr, prepared: Buffer, middle: Buffer
    ) -> None:
        """middle[local, i, :] = Σ_q Aᵢ[p, q] prepared[q, :]; terms share what they read."""
        width = rows * self.bw
        together = max(1, self.registers // len(pieces(width, self.lanes)))
        for first in range(0, self.rank, together):
            terms = [(i, 0, i - first) for i in range(first, min(self.rank, first + together))]
            with emit.opaque():
                sums = weighted_sums(args, width, self.lanes, p, prepared, terms)
                for (i, *_), held in zip(terms, sums, strict=True):
                    for at, size in held.vectors:
                        to = local * self.rank + i
                        emit.store(middle, held(at, size), to, at, lanes=size)

    def _block_products(
        self, args: Arguments, rows: int, row: Expr, q: Expr, prepared: Buffer
    ) -> None:
        """prepared[q, i, r, :] = x[row + r, q, :] Bᵢᵀ."""
        group = self._group(rows)
        with T.serial(0, T.int64(rows // group)) as g:
            for i in range(self.rank):
                with emit.opaque():
                    sums = emit.accumulators(group, self.bh)
                    self._times_factor(
                        args, sums, i, q, lambda r, c: args.x[row + g * group + r, q * self.bw + c]
                    )
                    for r, acc in enumerate(sums):
                        for at, size in pieces(self.bh, self.lanes):
                            to = (i * rows + g * group + r) * self.bh + at
                            emit.store(prepared, emit.load(acc, at, lanes=size), q, to, lanes=size)

    def _times_factors(
        self, args: Arguments, count: int, group: int, g: Expr, local: Expr, middle: Buffer
    ) -> list[Buffer]:
        """Σᵢ middle[local, i, r, :] Bᵢᵀ of ``count`` block rows, group ``g`` of their rows."""
        sums = emit.accumulators(count * group, self.bh)

        def u(i: int, r: int, c: Expr) -> Expr:
            at = (g * group + r % group) * self.bw + c
            return middle[(local + r // group) * self.rank + i, at]

        for i in range(self.rank):
            self._times_factor(args, sums, i, local, lambda r, c, i=i: u(i, r, c), clear=i == 0)
        return sums

    def _times_factor(
        self, args: Arguments, sums: list[Buffer], i: int, turn: Expr, x: Any, clear: bool = True
    ) -> None:
        """sums[r] (+)= Σ_c x(r, c) Bᵢ[:, c]; ``turn`` counts how often that is done."""
        factors = args.operands[-2]
        cut = pieces(self.bh, self.lanes)
        few = self.rank * self.bw * len(cut) <= self.registers
        term = i if few else self._nought(args, turn) + i
        if clear:
            for acc in sums:
                for at, size in cut:
                    emit.store(acc, emit.constant(0.0, size), at, lanes=size)

        def step(c: Expr) -> None:
            for at, size in cut:
                factor = T.bind(emit.weights(factors, term, c, at, lanes=size))
                for r, acc in enumerate(sums):
                    value = emit.load(acc, at, lanes=size) + emit.splat(x(r, c), size) * factor
                    emit.store(acc, value, at, lanes=size)

        if self.bw <= 16:
            for c in range(self.bw):
                step(c)
        else:
            with T.serial(0, self.bw) as c:
                step(c)

    def _nought(self, args: Arguments, turn: Expr) -> Expr:
        """Nought, but LLVM does not know that, nor that it is the same whatever ``turn`` is.

        What is read at such an offset is read where it is used; LLVM would read everything that no
        iteration changes ahead of the loop, and have no registers to keep it in.
        """
        some = args.operands[-3][T.min(turn, T.int64(self.block_rows))]
        return T.bind(T.cast(T.shift_right(some, T.int32(31)), "int64"))


def _rows_in(sums: list[Buffer]) -> Block:
    return lambda r, at, size: emit.load(sums[r], at, lanes=size)

"""The factorized product in bfloat16 on dot products of pairs: y = x Wᵀ for W = Σᵢ Aᵢ ⊗ Bᵢ.

The loops are those of kronecker.py; what its two steps multiply is bfloat16, all sums are float32:

* x Bᵢᵀ and Uᵢ Bᵢᵀ multiply pairs along the inputs of a block.
* The sum over q is bound by loads there, and a vector of bfloat16 holds twice as many numbers.
  With several terms and B first, Z keeps two terms of one element side by side, and one
  instruction adds both: Aᵢ Zᵢ + Aⱼ Zⱼ. Else two live columns q of a block row are added at once,
  their elements brought side by side in registers; an odd one is paired with itself times nought.

What is read again and again, Z or x, takes half the room, so that tiles of twice the rows fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dot import BFLOAT16, bfloat16_words, to_bfloat16
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.kronecker import Nest
from bscompile.targets.kernels.code.kronecker_outputs import divisor
from bscompile.targets.kernels.code.kronecker_sums import Held
from bscompile.targets.kernels.vectors import pieces

_LANES = 16  # 32-bit elements of a vector: the instruction is AVX-512's
_BUFFER = 128  # elements of the largest buffer that stays in registers
_CHAINS = 8  # independent sums of block products that hide the latency of the dot product
_ROW_PAD = 32  # elements between rows of rounded x, which else would share few sets of the cache


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    rows: int,
    registers: int,
    tasks: int,
    split: str,
    order: str,
) -> Any:
    """The kernel.

    Args:
        problem: The layer; bh a multiple of 4, bw even.
        operands: coefficients int32 [steps, words], indices int32 [steps, q's of a step], indptr
            int32 [m1 + 1], of steps;
            factors int32 [r, bw / 2, bh], bounds int32 [tasks + 1]; see pack_factor_words.
        rows: Rows of x per tile.
        registers: Vectors of sums that registers hold.
        tasks: Parallel tasks.
        split: What the tasks share: ``rows``, or ``outputs`` by bounds.
        order: ``b_first`` or ``a_first``.
    """
    return _Pairs(problem, operands, rows, _LANES, registers, tasks, split, order).generate()


class _Pairs(Nest):
    """The loops; arguments as of ``generate``."""

    def __init__(self, problem: Problem, operands: Sequence[tuple[str, Array]], *how: Any) -> None:
        super().__init__(problem, operands, *how)
        self.words = self.bw  # of one row of a block
        self.bw = 2 * self.words
        self.block_cols = problem.k // self.bw
        self.paired = self.b_first and self.rank > 1
        self.pair = 2 if self.paired else 1
        self.terms = -(-self.rank // 2) if self.paired else self.rank

    def generate(self) -> Any:
        """The recipe of the kernel."""
        return emit.generate("kronecker_bfloat16", self.problem, self.operands, self._all)

    def _all(self, args: Arguments) -> None:
        with emit.opaque():
            T.sblock_attr({"pragma_import_llvm": BFLOAT16.llvm})
            self._body(args)

    def _width(self, rows: int) -> int:
        """Elements of one term of a tile in whole vectors; what is over its end is never used."""
        flat = rows * (self.bh if self.b_first else self.bw)
        whole = _LANES if self.paired else 2 * _LANES
        return -(-flat // whole) * whole

    def _buffers(self, rows: int, turn: int) -> tuple[Buffer, Buffer]:
        """What the sum over q reads of a tile; rounded x (B first), or U (A first)."""
        width = self._width(rows)
        if self.b_first:
            middle = T.sblock_alloc_buffer((rows, self.problem.k + _ROW_PAD), "uint16")
        else:
            middle = T.sblock_alloc_buffer((turn * self.rank, width), "uint16")
        if self.paired:
            return T.sblock_alloc_buffer((self.block_cols, self.terms * width), "int32"), middle
        return T.sblock_alloc_buffer((self.block_cols, width), "uint16"), middle

    def _prepare(
        self, args: Arguments, rows: int, row: Expr, prepared: Buffer, middle: Buffer
    ) -> None:
        if self.b_first:
            with T.serial(0, T.int64(rows)) as r:
                self._round_row(args, row + r, middle, r)
        with T.serial(0, T.int64(self.block_cols)) as q:
            if not self.b_first:
                self._copy_inputs(args, rows, row, q, prepared)
            elif self.paired:
                self._paired_products(args, rows, q, prepared, middle)
            else:
                self._products(args, rows, q, prepared, middle)

    def _round_row(self, args: Arguments, row: Expr, rounded: Buffer, r: Expr) -> None:
        for start, size, count in _runs(self.problem.k):
            with T.serial(0, T.int64(count)) as i, emit.opaque():
                at = T.bind(start + i * size)
                value = to_bfloat16(emit.load(args.x, row, at, lanes=size), size)
                emit.store(rounded, value, r, at, lanes=size)

    def _copy_inputs(
        self, args: Arguments, rows: int, row: Expr, q: Expr, prepared: Buffer
    ) -> None:
        """prepared[q, r, :] = x[row + r, q, :]."""
        group = divisor(rows, _CHAINS)
        with T.serial(0, T.int64(rows // group)) as g, emit.opaque():
            for r in range(group):
                for at, size in pieces(self.bw, _LANES):
                    value = emit.load(args.x, row + g * group + r, q * self.bw + at, lanes=size)
                    to = (g * group + r) * self.bw + at
                    emit.store(prepared, to_bfloat16(value, size), q, to, lanes=size)

    def _products(
        self, args: Arguments, rows: int, q: Expr, prepared: Buffer, rounded: Buffer
    ) -> None:
        """prepared[q, r, :] = x[row + r, q, :] Bᵀ."""
        group = self._group(rows)
        with T.serial(0, T.int64(rows // group)) as g, emit.opaque():
            (sums,) = self._times(args, group, (0,), q, self._inputs(rounded, g * group, q))
            for r, acc in enumerate(sums):
                for at, size in pieces(self.bh, _LANES):
                    value = to_bfloat16(emit.load(acc, at, lanes=size), size)
                    emit.store(prepared, value, q, (g * group + r) * self.bh + at, lanes=size)

    def _paired_products(
        self, args: Arguments, rows: int, q: Expr, prepared: Buffer, rounded: Buffer
    ) -> None:
        """prepared[q, i, r, :] = x[row + r, q, :] (B₂ᵢᵀ, B₂ᵢ₊₁ᵀ) in pairs."""
        group, width = self._group(rows), self._width(rows)
        with T.serial(0, T.int64(rows // group)) as g:
            for i in range(self.terms):
                both = tuple(range(2 * i, min(self.rank, 2 * i + 2)))
                with emit.opaque():
                    sums = self._times(args, group, both, q, self._inputs(rounded, g * group, q))
                    for r in range(group):
                        for at, size in pieces(self.bh, _LANES):
                            pair = [emit.load(held[r], at, lanes=size) for held in sums]
                            to = i * width + (g * group + r) * self.bh + at
                            emit.store(prepared, bfloat16_words(pair, size), q, to, lanes=size)

    def _inputs(self, rounded: Buffer, first: Expr, q: Expr) -> Callable[[int, int, int], Expr]:
        return lambda r, c, size: BFLOAT16.splat(rounded, first + r, q * self.bw + 2 * c, size)

    def _times(
        self,
        args: Arguments,
        rows: int,
        terms: Sequence[int],
        turn: Expr,
        x: Callable[[int, int, int], Expr],
        held: list[Buffer] | None = None,
    ) -> list[list[Buffer]]:
        """Of each term the sums Σ_c x(r, c) Bᵢ[:, c] of ``rows`` rows, in float32.

        Args:
            args: The kernel's parameters.
            rows: How many.
            terms: Each i.
            turn: Counts how often that is done.
            x: (row, pair of inputs, lanes) -> that pair in each lane.
            held: Sums of one term to add to; None begins new ones.
        """
        factors, cut = args.operands[3], pieces(self.bh, _LANES)
        few = self.rank * self.words * len(cut) <= self.registers
        nought = T.int64(0) if few else self._nought(args, turn)
        sums = [held or emit.accumulators(rows, self.bh) for _ in terms]
        if held is None:
            for acc in (acc for each in sums for acc in each):
                for at, size in cut:
                    emit.store(acc, emit.constant(0.0, size), at, lanes=size)

        def step(c: Any) -> None:
            for each, i in zip(sums, terms, strict=True):
                for at, size in cut:
                    factor = T.bind(emit.load(factors, nought + i, c, at, lanes=size))
                    for r, acc in enumerate(each):
                        total = emit.load(acc, at, lanes=size)
                        total = BFLOAT16.multiply_add(total, x(r, c, size), factor, size)
                        emit.store(acc, total, at, lanes=size)

        if self.words <= 8:
            for c in range(self.words):
                step(c)
        else:
            with T.serial(0, self.words) as c:
                step(c)
        return sums

    def _sum_products(self, args: Arguments, rows: int, p: Expr, prepared: Buffer) -> Held:
        if self.paired:
            sums = self._sum_terms(args, rows, p, prepared)
        else:
            (sums,) = self._sum_columns(args, rows, p, prepared, (0,))
        return lambda at, size: _lanes_of(sums[at // _LANES], at % _LANES, size)

    def _sum_inputs(
        self, args: Arguments, rows: int, p: Expr, local: Expr, prepared: Buffer, middle: Buffer
    ) -> None:
        """middle[local, i, :] = Σ_q Aᵢ[p, q] prepared[q, :]; terms share what they read."""
        together = max(1, self.registers // (self._width(rows) // _LANES))
        for first in range(0, self.rank, together):
            terms = range(first, min(self.rank, first + together))
            with emit.opaque():
                sums = self._sum_columns(args, rows, p, prepared, terms)
                for i, vectors in zip(terms, sums, strict=True):
                    for v, value in enumerate(vectors):
                        narrow = to_bfloat16(value, _LANES)
                        emit.store(middle, narrow, local * self.rank + i, v * _LANES, lanes=_LANES)

    def _times_factors(
        self, args: Arguments, count: int, group: int, g: Expr, local: Expr, middle: Buffer
    ) -> list[Buffer]:
        held = None
        for i in range(self.rank):

            def word(r: int, c: Any, size: int, i: int = i) -> Expr:
                at = (g * group + r % group) * self.bw + 2 * c
                return BFLOAT16.splat(middle, (local + r // group) * self.rank + i, at, size)

            (held,) = self._times(args, count * group, (i,), local, word, held)
        assert held is not None
        return held

    def _sum_terms(self, args: Arguments, rows: int, p: Expr, prepared: Buffer) -> list[Expr]:
        """Σ_q Σᵢ Aᵢ[p, q] prepared[q, i, :], the terms in pairs; a vector of each 16 elements."""
        coefficients, indices = args.operands[:2]
        width = self._width(rows)
        sums = _cleared(width)

        def add(j: Expr) -> None:
            q = T.bind(T.cast(indices[j, 0], "int64"))
            for i in range(self.terms):
                a = T.bind(T.broadcast(coefficients[j, i], _LANES))
                for v, place in enumerate(sums):
                    z = emit.load(prepared, q, i * width + v * _LANES, lanes=_LANES)
                    _accumulate(place, z, a)

        self._steps(args, p, add)
        return [T.bind(emit.load(*place, lanes=_LANES)) for place in sums]

    def _sum_columns(
        self, args: Arguments, rows: int, p: Expr, prepared: Buffer, terms: Sequence[int]
    ) -> list[list[Expr]]:
        """Of each term i, Σ_q Aᵢ[p, q] prepared[q, :], the columns in pairs."""
        coefficients, indices = args.operands[:2]
        width = self._width(rows)
        sums = [_cleared(width) for _ in terms]

        def add(j: Expr) -> None:
            columns = [T.bind(T.cast(indices[j, place], "int64")) for place in range(2)]
            factors = [T.bind(T.broadcast(coefficients[j, i], _LANES)) for i in terms]
            for v in range(width // (2 * _LANES)):
                at = 2 * v * _LANES
                both = [T.bind(emit.load(prepared, q, at, lanes=2 * _LANES)) for q in columns]
                for half, order in enumerate(_ZIPPED):
                    pairs = T.bind(T.reinterpret(f"int32x{_LANES}", _shuffled(both, order)))
                    for held, a in zip(sums, factors, strict=True):
                        _accumulate(held[2 * v + half], pairs, a)

        self._steps(args, p, add)
        return [
            [
                _shuffled([emit.load(*place, lanes=_LANES) for place in held[at : at + 2]], order)
                for at in range(0, len(held), 2)
                for order in _UNZIPPED
            ]
            for held in sums
        ]

    def _steps(self, args: Arguments, p: Expr, add: Callable[[Expr], None]) -> None:
        indptr = args.operands[2]
        with emit.loop(indptr[p], indptr[p + 1]) as index:
            add(T.bind(T.cast(index, "int64")))


# Two vectors of 16-bit numbers are brought side by side within each quarter, as one instruction
# does it: first the lower half of each quarter, then the upper. The sums come back in order.
_QUARTERS = [range(start, start + 8) for start in range(0, 2 * _LANES, 8)]
_ZIPPED = [
    [other + e for quarter in _QUARTERS for e in quarter[at : at + 4] for other in (0, 2 * _LANES)]
    for at in (0, 4)
]
_UNZIPPED = [
    [4 * (e // 8) + e % 4 + _LANES * (e % 8 // 4) for e in range(at, at + _LANES)]
    for at in (0, _LANES)
]


def _cleared(width: int) -> list[tuple[Buffer, int]]:
    """(buffer, offset) of each vector of sums."""
    held = emit.accumulators(-(-width // _BUFFER), min(width, _BUFFER))
    sums = [(held[at // _BUFFER], at % _BUFFER) for at in range(0, width, _LANES)]
    for acc, at in sums:
        emit.store(acc, emit.constant(0.0, _LANES), at, lanes=_LANES)
    return sums


def _accumulate(place: tuple[Buffer, int], pairs: Expr, factor: Expr) -> None:
    acc, at = place
    total = BFLOAT16.multiply_add(emit.load(acc, at, lanes=_LANES), factor, pairs, _LANES)
    emit.store(acc, total, at, lanes=_LANES)


def _lanes_of(value: Expr, first: int, lanes: int) -> Expr:
    if lanes == _LANES:
        return value
    return _shuffled([value], range(first, first + lanes))


def _shuffled(vectors: list[Expr], order: Sequence[int]) -> Expr:
    return T.bind(tirx.Shuffle(vectors, [tirx.IntImm("int32", lane) for lane in order]))


def _runs(length: int) -> list[tuple[int, int, int]]:
    """(first element, lanes, vectors) that cover a length."""
    whole = length // _LANES
    runs = [(0, _LANES, whole)] if whole else []
    return runs + [(whole * _LANES + at, size, 1) for at, size in pieces(length % _LANES, _LANES)]

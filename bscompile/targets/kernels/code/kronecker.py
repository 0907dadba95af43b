"""y = x Wᵀ for W = Σᵢ Aᵢ ⊗ Bᵢ, never building W.

With x as [rows, q, c] and y as [rows, p, d], y[., p, d] = Σᵢ Σ_q Aᵢ[p, q] Σ_c Bᵢ[d, c] x[., q, c].
For a tile of rows, either

* B first: Zᵢ[q] = x[., q, :] Bᵢᵀ into a buffer in cache, then y[p] = Σ A[p, q] Z[q]; or
* A first: Uᵢ = Σ A[p, q] x[., q, :] in registers, then y[p] = Σᵢ Uᵢ Bᵢᵀ.

The sum over q multiplies by one scalar, so it treats a tile's [rows, d] (or [rows, c]) as flat:
every lane is used whatever the block size. Zero coefficients are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish
from bscompile.targets.kernels.vectors import pieces

_BUFFER = 128  # elements of the largest buffer that stays in registers
_CHAINS = 8  # independent sums of block products that hide the latency of the multiply-add
_COPIED = 8  # rows that are copied side by side
_SUMS = 4  # likewise of the sum over q, which waits for its operands longer anyway


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
        operands: coefficients [nnz, r]; indices int32 [nnz], the q of each; indptr int32
            [m1 + 1]; factors [r, bw, bh], each Bᵢ transposed; bounds int32 [tasks + 1].
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
        self.rank, self.bw, self.bh = (int(size) for size in operands[3][1].shape)
        self.block_rows = len(operands[2][1]) - 1
        self.block_cols = problem.k // self.bw
        # Block rows whose outputs are finished together, on full vectors.
        self.chunk = 1 if self.bh % lanes == 0 else -(-4 * lanes // self.bh)

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
                p, self.tasks, self.split, tiles, self.block_rows, args.operands[4]
            )
            with emit.opaque():
                prepared, middle = self._buffers(rows)
                outputs = T.sblock_alloc_buffer((rows, self.chunk * self.bh), "float32")
                with emit.loop(*tile_range) as tile, emit.opaque():
                    row = T.bind(emit.tile_start(args.m, rows, tile))
                    self._prepare(args, rows, row, prepared, middle)
                    self._outputs(args, rows, row, row_range, prepared, outputs, middle)

        emit.parallel_tasks(self.tasks, task)

    def _buffers(self, rows: int) -> tuple[Buffer, Buffer]:
        """What the sum over q reads of a tile, and what A first puts between it and B."""
        return (
            T.sblock_alloc_buffer((self.block_cols, self._flat(rows)), "float32"),
            T.sblock_alloc_buffer((self.rank, rows * self.bw), "float32"),
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

    def _flat(self, rows: int) -> int:
        """Elements of a tile's flat vector, all its terms where each has its own."""
        return rows * (self.bh * self.rank if self.b_first else self.bw)

    def _group(self, rows: int) -> int:
        """Rows whose block products are accumulated together."""
        most = max(1, _CHAINS // len(pieces(self.bh, self.lanes)))
        return divisor(rows, most)

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

    def _times_factor(
        self, args: Arguments, sums: list[Buffer], i: int, turn: Expr, x: Any, clear: bool = True
    ) -> None:
        """sums[r] (+)= Σ_c x(r, c) Bᵢ[:, c]; ``turn`` counts how often that is done."""
        factors = args.operands[3]
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
        some = args.operands[2][T.min(turn, T.int64(self.block_rows))]
        return T.bind(T.cast(T.shift_right(some, T.int32(31)), "int64"))

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

    def _outputs(
        self,
        args: Arguments,
        rows: int,
        row: Expr,
        row_range: tuple[Expr, Expr],
        prepared: Buffer,
        outputs: Buffer,
        middle: Buffer,
    ) -> None:
        first, last = row_range
        chunks = T.floordiv(last - first + (self.chunk - 1), T.int64(self.chunk))
        with T.serial(0, chunks) as index:
            begin = first + index * self.chunk
            count = T.min(last - begin, T.int64(self.chunk)) if self.chunk > 1 else T.int64(1)
            with T.serial(0, count) as local, emit.opaque():
                p = T.bind(begin + local)
                if self.b_first:
                    self._sum_products(args, rows, p, local, prepared, outputs)
                else:
                    self._sum_inputs(args, rows, p, prepared, middle)
                    self._times_factors(args, rows, local, middle, outputs)
            self._finish(args, rows, row, begin * self.bh, count, outputs)

    def _weighted_sums(
        self,
        args: Arguments,
        width: int,
        p: Expr,
        prepared: Buffer,
        terms: Sequence[tuple[int, int, int]],
    ) -> list[list[tuple[Buffer, int, int, int]]]:
        """Sum s: Σ_q Σ coefficient[q, i] prepared[q, offset : offset + width] over its terms.

        Args:
            args: The kernel's parameters.
            width: Elements of each sum.
            p: The block row.
            prepared: What is summed.
            terms: (i, offset, s), equal offsets side by side.

        Returns:
            Of each sum (accumulator, position in it, position in the sum, lanes) by vector.
        """
        coefficients, indices, indptr = args.operands[:3]
        cut = pieces(width, self.lanes)
        count = 1 + max(s for *_, s in terms)
        chains = max(1, _SUMS // (count * len(cut)))

        def cleared() -> list[list[tuple[Buffer, int, int, int]]]:
            sums = []
            for _ in range(count):
                held = emit.accumulators(-(-width // _BUFFER), min(width, _BUFFER))
                sums.append([(held[at // _BUFFER], at % _BUFFER, at, size) for at, size in cut])
                for acc, at, _, size in sums[-1]:
                    emit.store(acc, emit.constant(0.0, size), at, lanes=size)
            return sums

        def accumulate(sums: list[list[tuple[Buffer, int, int, int]]], index: Expr) -> None:
            j = T.bind(T.cast(index, "int64"))
            q = T.bind(T.cast(indices[j], "int64"))
            values: dict[tuple[int, int], Expr] = {}
            wide = self._coefficients(coefficients, j, [i for i, *_ in terms])
            for a, (_, offset, s) in zip(wide, terms, strict=True):
                for acc, at, position, size in sums[s]:
                    key = (offset, position)
                    if key not in values:
                        values[key] = T.bind(emit.load(prepared, q, offset + position, lanes=size))
                    product = emit.splat(a, size) * values[key]
                    emit.store(acc, emit.load(acc, at, lanes=size) + product, at, lanes=size)

        every = [cleared() for _ in range(chains)]
        first, last = indptr[p], indptr[p + 1]
        if chains > 1:
            steps = T.bind(T.floordiv(last - first, chains))
            with T.serial(0, steps) as step:
                for u, sums in enumerate(every):
                    accumulate(sums, first + step * chains + u)
            first = first + steps * chains
        with emit.loop(first, last) as index:
            accumulate(every[0], index)
        for s, vectors in enumerate(every[0]):
            for v, (acc, at, _, size) in enumerate(vectors if chains > 1 else ()):
                value = emit.total([sums[s][v][0] for sums in every], at, size)
                emit.store(acc, value, at, lanes=size)
        return every[0]

    def _coefficients(self, coefficients: Buffer, j: Expr, terms: list[int]) -> list[Expr]:
        """Those of one q, widened together where that is wanted: one by one it costs a third."""
        count = len(terms)
        if str(coefficients.dtype) == "float32" or count not in (2, 4, 8):
            return [T.bind(emit.weights(coefficients, j, i, lanes=1)) for i in terms]
        together = T.bind(emit.weights(coefficients, j, terms[0], lanes=count))
        lanes = [tirx.IntImm("int32", lane) for lane in range(count)]
        return [T.bind(tirx.Shuffle([together], [lane])) for lane in lanes]

    def _sum_products(
        self, args: Arguments, rows: int, p: Expr, local: Expr, prepared: Buffer, outputs: Buffer
    ) -> None:
        """outputs[r, local, :] = Σ_q Σᵢ Aᵢ[p, q] prepared[q, i, r, :]."""
        width = rows * self.bh
        terms = [(i, i * width, 0) for i in range(self.rank)]
        (vectors,) = self._weighted_sums(args, width, p, prepared, terms)
        for acc, at, position, size in vectors:
            for part, part_size in row_parts(position, size, self.bh):
                value = emit.load(acc, at + part - position, lanes=part_size)
                r, d = divmod(part, self.bh)
                emit.store(outputs, value, r, local * self.bh + d, lanes=part_size)

    def _sum_inputs(
        self, args: Arguments, rows: int, p: Expr, prepared: Buffer, middle: Buffer
    ) -> None:
        """middle[i, :] = Σ_q Aᵢ[p, q] prepared[q, :]; terms share what they read."""
        width = rows * self.bw
        together = max(1, self.registers // len(pieces(width, self.lanes)))
        for first in range(0, self.rank, together):
            terms = [(i, 0, i - first) for i in range(first, min(self.rank, first + together))]
            with emit.opaque():
                sums = self._weighted_sums(args, width, p, prepared, terms)
                for (i, *_), vectors in zip(terms, sums, strict=True):
                    for acc, at, position, size in vectors:
                        value = emit.load(acc, at, lanes=size)
                        emit.store(middle, value, i, position, lanes=size)

    def _times_factors(
        self, args: Arguments, rows: int, local: Expr, middle: Buffer, outputs: Buffer
    ) -> None:
        """outputs[r, local, :] = Σᵢ middle[i, r, :] Bᵢᵀ."""
        group = self._group(rows)
        with T.serial(0, T.int64(rows // group)) as g, emit.opaque():
            sums = emit.accumulators(group, self.bh)
            for i in range(self.rank):
                self._times_factor(
                    args,
                    sums,
                    i,
                    local,
                    lambda r, c, i=i: middle[i, (g * group + r) * self.bw + c],
                    clear=i == 0,
                )
            for r, acc in enumerate(sums):
                for at, size in pieces(self.bh, self.lanes):
                    value = emit.load(acc, at, lanes=size)
                    emit.store(outputs, value, g * group + r, local * self.bh + at, lanes=size)

    def _finish(
        self, args: Arguments, rows: int, row: Expr, column: Expr, count: Expr, outputs: Buffer
    ) -> None:
        """The epilogue of ``count`` block rows beginning at output ``column``."""

        def write(width: int, offset: Expr) -> None:
            with T.serial(0, T.int64(rows)) as r, emit.opaque():
                for at, size in pieces(width, self.lanes):
                    value = T.bind(emit.load(outputs, r, offset + at, lanes=size))
                    finish(args, value, row + r, column + offset + at, size)

        if self.chunk == 1:
            write(self.bh, T.int64(0))
            return
        with T.If(count == self.chunk):
            with T.Then():
                write(self.chunk * self.bh, T.int64(0))
            with T.Else(), T.serial(0, count) as local:
                write(self.bh, local * self.bh)


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

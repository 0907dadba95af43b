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

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish
from bscompile.targets.kernels.vectors import pieces

_BUFFER = 128  # elements of the largest buffer that stays in registers
_GROUP = 4  # rows whose block products are accumulated together


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    rows: int,
    lanes: int,
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
        tasks: Parallel tasks.
        split: What the tasks share: ``rows``, or ``outputs`` by bounds.
        order: ``b_first`` or ``a_first``.
    """
    return _Kronecker(problem, operands, rows, lanes, tasks, split, order).generate()


class _Kronecker:
    """The generator's state: shapes that every part of the kernel needs."""

    def __init__(
        self,
        problem: Problem,
        operands: Sequence[tuple[str, Array]],
        rows: int,
        lanes: int,
        tasks: int,
        split: str,
        order: str,
    ) -> None:
        self.problem, self.operands = problem, operands
        self.rows, self.lanes, self.tasks, self.split = rows, lanes, tasks, split
        self.b_first = order == "b_first"
        self.rank, self.bw, self.bh = operands[3][1].shape
        self.block_rows = len(operands[2][1]) - 1
        self.block_cols = problem.k // self.bw
        # Block rows whose outputs are finished together, on full vectors.
        self.chunk = 1 if self.bh % lanes == 0 else -(-4 * lanes // self.bh)

    def generate(self) -> Any:
        return emit.generate("kronecker", self.problem, self.operands, self._body)

    def _body(self, args: Arguments) -> None:
        emit.for_rows_of(args, (self.rows, 4), lambda r: self._nest(args, r))

    def _nest(self, args: Arguments, rows: int) -> None:
        tiles = T.int64(emit.tile_count(args.m, rows))
        bounds = args.operands[4]
        height = self.bh * self.rank if self.b_first else self.bw

        def task(p: Expr) -> None:
            tile_range = (T.int64(0), tiles)
            row_range = (T.int64(0), T.int64(self.block_rows))
            if self.split == "rows":
                tile_range = emit.share(tiles, p, self.tasks)
            else:
                row_range = (T.cast(bounds[p], "int64"), T.cast(bounds[p + 1], "int64"))
            with emit.opaque():
                prepared = T.sblock_alloc_buffer((self.block_cols, height * rows), "float32")
                outputs = T.sblock_alloc_buffer((rows, self.chunk * self.bh), "float32")
                middle = T.sblock_alloc_buffer((self.rank, rows * self.bw), "float32")
                with emit.loop(*tile_range) as tile, emit.opaque():
                    row = T.bind(emit.tile_start(args.m, rows, tile))
                    with T.serial(0, T.int64(self.block_cols)) as q:
                        if self.b_first:
                            self._block_products(args, rows, row, q, prepared)
                        else:
                            self._copy_inputs(args, rows, row, q, prepared)
                    self._outputs(args, rows, row, row_range, prepared, outputs, middle)

        emit.parallel_tasks(self.tasks, task)

    def _block_products(
        self, args: Arguments, rows: int, row: Expr, q: Expr, prepared: Buffer
    ) -> None:
        """prepared[q, i, r, :] = x[row + r, q, :] Bᵢᵀ."""
        group = next(g for g in range(min(rows, _GROUP), 0, -1) if rows % g == 0)
        with T.serial(0, T.int64(rows // group)) as g:
            for i in range(self.rank):
                with emit.opaque():
                    sums = emit.accumulators(group, self.bh)
                    self._times_factor(
                        args, sums, i, lambda r, c: args.x[row + g * group + r, q * self.bw + c]
                    )
                    for r, acc in enumerate(sums):
                        for at, size in pieces(self.bh, self.lanes):
                            to = (i * rows + g * group + r) * self.bh + at
                            emit.store(prepared, emit.load(acc, at, lanes=size), q, to, lanes=size)

    def _times_factor(
        self, args: Arguments, sums: list[Buffer], i: int, x: Any, clear: bool = True
    ) -> None:
        """sums[r] (+)= Σ_c x(r, c) Bᵢ[:, c]."""
        factors = args.operands[3]
        cut = pieces(self.bh, self.lanes)
        if clear:
            for acc in sums:
                for at, size in cut:
                    emit.store(acc, emit.constant(0.0, size), at, lanes=size)

        def step(c: Expr) -> None:
            for at, size in cut:
                factor = T.bind(emit.weights(factors, i, c, at, lanes=size))
                for r, acc in enumerate(sums):
                    value = emit.load(acc, at, lanes=size) + emit.splat(x(r, c), size) * factor
                    emit.store(acc, value, at, lanes=size)

        if self.bw <= 16:
            for c in range(self.bw):
                step(c)
        else:
            with T.serial(0, self.bw) as c:
                step(c)

    def _copy_inputs(
        self, args: Arguments, rows: int, row: Expr, q: Expr, prepared: Buffer
    ) -> None:
        """prepared[q, r, :] = x[row + r, q, :]."""
        with T.serial(0, T.int64(rows)) as r, emit.opaque():
            for at, size in pieces(self.bw, self.lanes):
                value = emit.load(args.x, row + r, q * self.bw + at, lanes=size)
                emit.store(prepared, value, q, r * self.bw + at, lanes=size)

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
                    self._sum_inputs(args, rows, p, local, prepared, outputs, middle)
            self._finish(args, rows, row, begin * self.bh, count, outputs)

    def _weighted_sum(
        self,
        args: Arguments,
        width: int,
        p: Expr,
        prepared: Buffer,
        terms: Sequence[tuple[int, Expr]],
    ) -> list[tuple[Buffer, int, int, int]]:
        """Σ_q Σ coefficient[q, i] prepared[q, offset : offset + width] over (i, offset) in terms.

        Returns:
            (accumulator, position in it, position in the sum, lanes) of each vector.
        """
        coefficients, indices, indptr = args.operands[:3]
        cut = pieces(width, self.lanes)
        sums = emit.accumulators(-(-width // _BUFFER), min(width, _BUFFER))
        vectors = [(sums[at // _BUFFER], at % _BUFFER, at, size) for at, size in cut]
        for acc, at, _, size in vectors:
            emit.store(acc, emit.constant(0.0, size), at, lanes=size)
        with emit.loop(indptr[p], indptr[p + 1]) as index:
            j = T.bind(T.cast(index, "int64"))
            q = T.bind(T.cast(indices[j], "int64"))
            for i, offset in terms:
                a = T.bind(emit.weights(coefficients, j, i, lanes=1))
                for acc, at, position, size in vectors:
                    value = emit.load(prepared, q, offset + position, lanes=size)
                    total = emit.load(acc, at, lanes=size) + emit.splat(a, size) * value
                    emit.store(acc, total, at, lanes=size)
        return vectors

    def _sum_products(
        self, args: Arguments, rows: int, p: Expr, local: Expr, prepared: Buffer, outputs: Buffer
    ) -> None:
        """outputs[r, local, :] = Σ_q Σᵢ Aᵢ[p, q] prepared[q, i, r, :]."""
        width = rows * self.bh
        terms = [(i, i * width) for i in range(self.rank)]
        vectors = self._weighted_sum(args, width, p, prepared, terms)
        for acc, at, position, size in vectors:
            for part, part_size in _row_parts(position, size, self.bh):
                value = emit.load(acc, at + part - position, lanes=part_size)
                r, d = divmod(part, self.bh)
                emit.store(outputs, value, r, local * self.bh + d, lanes=part_size)

    def _sum_inputs(
        self,
        args: Arguments,
        rows: int,
        p: Expr,
        local: Expr,
        prepared: Buffer,
        outputs: Buffer,
        middle: Buffer,
    ) -> None:
        """outputs[r, local, :] = Σᵢ (Σ_q Aᵢ[p, q] prepared[q, r, :]) Bᵢᵀ."""
        for i in range(self.rank):
            with emit.opaque():
                vectors = self._weighted_sum(args, rows * self.bw, p, prepared, [(i, 0)])
                for acc, at, position, size in vectors:
                    emit.store(middle, emit.load(acc, at, lanes=size), i, position, lanes=size)
        group = next(g for g in range(min(rows, _GROUP), 0, -1) if rows % g == 0)
        with T.serial(0, T.int64(rows // group)) as g, emit.opaque():
            sums = emit.accumulators(group, self.bh)
            for i in range(self.rank):
                self._times_factor(
                    args,
                    sums,
                    i,
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


def _row_parts(position: int, size: int, height: int) -> list[tuple[int, int]]:
    """Cut a vector over the flat [rows, height] at row ends: (position, lanes)."""
    parts = []
    end = position + size
    while position < end:
        width = min(end, (position // height + 1) * height) - position
        parts += [(position + at, lanes) for at, lanes in pieces(width, size)]
        position += width
    return parts

"""Attention whose two products are of bfloat16, by AVX512-BF16: sums and softmax stay float32.

Both products multiply pairs: of two inputs d in Q Kᵀ, of two keys in the weights times V. So per
(batch, head) K is packed into columns of pairs [d / 2, t] and V into rows of pairs [t / 2, e];
per tile Q is rounded once, and the weights, between 0 and 1, as they leave the softmax. What they
are divided by is the sum before they are rounded.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cpu.code.attention import VECTORS, Nest
from bscompile.targets.cpu.code.tensors import Argument, rounded_up
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dot import BFLOAT16, bfloat16_words, to_bfloat16
from bscompile.targets.kernels.code.emit import Buffer, Expr
from bscompile.targets.kernels.code.transpose import transposed
from bscompile.targets.kernels.vectors import pieces

_LANES = 16  # 32-bit elements of a vector: the instruction is AVX-512's


class BFloat16Nest(Nest):
    """The code for one number of rows per tile, see attention.py."""

    def emit(self, tasks: int) -> None:
        """Emit everything."""
        with emit.opaque():
            T.sblock_attr({"pragma_import_llvm": BFLOAT16.llvm})
            super().emit(tasks)

    @property
    def _pairs(self) -> int:
        """Pairs of inputs."""
        return -(-self.inner // 2)

    @property
    def _whole(self) -> int:
        """Inputs in whole squares of pairs."""
        return int(rounded_up(self.inner, 2 * _LANES))

    def _kept(self) -> list[Buffer]:
        """Columns of K, rows of V, each in pairs, and 16 rounded rows of K."""
        whole = int(rounded_up(self.outer, _LANES))
        half = self.padded // 2 if isinstance(self.padded, int) else T.floordiv(self.padded, 2)
        columns = T.sblock_alloc_buffer((self._whole // 2, self.padded), "int32")
        values = T.sblock_alloc_buffer((half, whole), "int32")
        square = T.sblock_alloc_buffer((_LANES, self._whole), "uint16")
        for buffer in (columns, values):  # see Nest._kept
            T.buffer_store(buffer, T.int32(0), [0, 0])
        self._clear_ends(square)
        return [columns, values, square]

    def _passing(self) -> list[Buffer]:
        """Scores, rounded rows of Q, weights."""
        rounded = T.sblock_alloc_buffer((self.rows, self._whole), "uint16")
        self._clear_ends(rounded)
        weights = T.sblock_alloc_buffer((self.rows, self.padded), "uint16")
        return [*super()._passing(), rounded, weights]

    def _clear_ends(self, rows: Buffer) -> None:
        """Nought behind the last input of each row."""
        for r in range(int(rows.shape[0])):
            for d in range(self.inner, self._whole):
                T.buffer_store(rows, T.uint16(0), [r, d])

    def _weigh(self, passing: list[Buffer], weight: Expr, r: Expr, at: Expr) -> None:
        emit.store(passing[-1], to_bfloat16(weight, _LANES), r, at, lanes=_LANES)

    def _round(self, source: Argument, to: Buffer, r: Expr, **where: Expr) -> None:
        """to[r, :] = one row of Q or K."""
        vectors = source.tensor.axes[-1] == "d"
        for at, size in pieces(self.inner, _LANES if vectors else 1):
            value = source.load(size, **where, d=at)
            emit.store(to, to_bfloat16(value, size), r, at, lanes=size)

    def _pack(self, kept: list[Buffer], batch: Expr, head: Expr) -> None:
        """K -> [d / 2, t], V -> [t / 2, e]; keys behind the last one repeat it."""
        columns, values, square = kept
        last = T.int64(self.keys) - 1
        here = {"b": batch, "h": head}
        with T.serial(0, T.floordiv(T.int64(self.padded), T.int64(_LANES))) as group:
            with T.serial(0, T.int64(_LANES)) as r, emit.opaque():
                t = T.bind(T.min(group * _LANES + r, last))
                self._round(self.k, square, r, **here, t=t)
            with T.serial(0, self._whole // (2 * _LANES)) as part, emit.opaque():
                rows = [
                    T.reinterpret(
                        f"int32x{_LANES}",
                        emit.load(square, r, part * 2 * _LANES, lanes=2 * _LANES),
                    )
                    for r in range(_LANES)
                ]
                for i, column in enumerate(transposed(rows)):
                    to = (part * _LANES + i, group * _LANES)
                    emit.store(columns, column, *to, lanes=_LANES)
        with T.serial(0, T.floordiv(T.int64(self.keys) + 1, T.int64(2))) as pair, emit.opaque():
            both = [T.bind(T.min(2 * pair + which, last)) for which in range(2)]
            for at, size in pieces(self.outer, _LANES):
                words = bfloat16_words([self.v.load(size, **here, t=t, e=at) for t in both], size)
                emit.store(values, words, pair, at, lanes=size)

    def _scores(
        self, kept: list[Buffer], passing: list[Buffer], batch: Expr, head: Expr, row: Expr
    ) -> None:
        columns, (scores, rounded, _) = kept[0], passing
        with T.serial(0, T.int64(self.rows)) as r, emit.opaque():
            self._round(self.q, rounded, r, b=batch, h=head, s=row + r)
        width, at = VECTORS * _LANES, [i * _LANES for i in range(VECTORS)]
        with T.serial(0, T.floordiv(T.int64(self.padded), T.int64(width))) as block, emit.opaque():
            sums = emit.accumulators(self.rows, width)
            self._clear(sums, at)
            with T.serial(0, T.int64(self._pairs)) as d:
                self._add(sums, at, rounded, d, columns, d, block * width)
            self._scale(sums, at, scores, block * width)

    def _outputs(
        self,
        kept: list[Buffer],
        passing: list[Buffer],
        totals: Buffer,
        batch: Expr,
        head: Expr,
        row: Expr,
    ) -> None:
        values, weights = kept[1], passing[-1]
        for start in range(0, self.outer, VECTORS * _LANES):
            cut = pieces(min(VECTORS * _LANES, self.outer - start), _LANES)
            at = sorted({a // _LANES * _LANES for a, _ in cut})
            with emit.opaque():
                sums = emit.accumulators(self.rows, VECTORS * _LANES)
                self._clear(sums, at)
                with T.serial(0, T.floordiv(T.int64(self.keys) + 1, T.int64(2))) as t:
                    self._add(sums, at, weights, t, values, t, start)
                where = {"b": batch, "h": head, "s": row}
                self._leave(sums, [(a, start + a, n) for a, n in cut], totals, where)

    def _add(
        self,
        sums: list[Buffer],
        at: list[int],
        left: Buffer,
        pair: Expr,
        right: Buffer,
        line: Expr,
        first: Any,
    ) -> None:
        """sums[r] += left[r, pair] · right[line, first :], over a pair of bfloat16."""
        vectors = [T.bind(emit.load(right, line, first + a, lanes=_LANES)) for a in at]
        for r, acc in enumerate(sums):
            factor = T.bind(BFLOAT16.splat(left, T.int64(r), 2 * pair, _LANES))
            for a, vector in zip(at, vectors, strict=True):
                total = emit.load(acc, a, lanes=_LANES)
                total = BFLOAT16.multiply_add(total, factor, vector, _LANES)
                emit.store(acc, total, a, lanes=_LANES)

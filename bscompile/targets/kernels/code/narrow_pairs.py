"""y = x Wᵀ in bfloat16 or int8 on AArch64's matrix instructions: pairs of rows by pairs of outputs.

One instruction adds [2 rows, group] [2 outputs, group]ᵀ to a square of four sums, which one
register holds: row 0 with both outputs, then row 1. Squares of neighbouring outputs are woven
into rows when a block row is done. Everything around is narrow.py's.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.chunks import Sums
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.narrow import UNROLL, Nest
from bscompile.targets.kernels.code.narrow_inputs import Inputs

_SQUARE = 4  # sums in one register


class PairNest(Nest):
    """Tiles of whole pairs of rows; a single row stands for both of its pair."""

    def _sums(self, args: Arguments, inputs: Inputs, rows: int, block_row: Expr, row: Expr) -> Sums:
        values, starts, indptr, _ = args.operands[:4]
        product, pairs = self._product, -(-rows // 2)
        # Of each pair of rows the squares of all pairs of outputs, one after the other.
        sums = emit.accumulators(pairs, 2 * self._height, product.total)
        zero = T.float32(0) if product.total == "float32" else T.int32(0)
        squares = range(self._height // 2)
        for acc in sums:
            for square in squares:
                emit.store(acc, emit.splat(zero, _SQUARE), square * _SQUARE, lanes=_SQUARE)

        def accumulate(block: Expr, start: Expr, step: Expr) -> None:
            column = start + step * product.group
            x = [
                T.bind(product.pair(inputs.x, row + 2 * p, row + min(2 * p + 1, rows - 1), column))
                for p in range(pairs)
            ]
            for square in squares:
                weight = T.bind(emit.load(values, block, step, square * _SQUARE, lanes=_SQUARE))
                for acc, both in zip(sums, x, strict=True):
                    total = emit.load(acc, square * _SQUARE, lanes=_SQUARE)
                    total = product.multiply_add(total, both, weight, _SQUARE)
                    emit.store(acc, total, square * _SQUARE, lanes=_SQUARE)

        with emit.loop(indptr[block_row], indptr[block_row + 1]) as index:
            block = T.bind(T.cast(index, "int64"))
            start = T.bind(T.cast(starts[block], "int64"))
            loops = self._steps // UNROLL if self._steps > UNROLL else 0
            if loops:
                with T.serial(0, T.int64(loops)) as outer:
                    for u in range(UNROLL):
                        accumulate(block, start, outer * UNROLL + u)
            for step in range(loops * UNROLL, self._steps):
                accumulate(block, start, T.int64(step))
        woven = self._woven(sums, rows)
        return lambda r, at, size: emit.load(woven[r], at, lanes=size)

    def _woven(self, sums: list[Buffer], rows: int) -> list[Buffer]:
        """The sums of each row, side by side."""
        woven = emit.accumulators(rows, self._height, self._product.total)
        for r, acc in enumerate(woven):
            first = 2 * (r % 2)
            order = [tirx.IntImm("int32", lane + first) for lane in (0, 1, _SQUARE, _SQUARE + 1)]
            for at in range(0, self._height, _SQUARE):
                pair = [
                    T.bind(emit.load(sums[r // 2], 2 * at + side, lanes=_SQUARE))
                    for side in (0, _SQUARE)
                ]
                emit.store(acc, T.bind(tirx.Shuffle(pair, order)), at, lanes=_SQUARE)
        return woven

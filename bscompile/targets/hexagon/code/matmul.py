"""y = x Wᵀ in int8 on HVX: block-sparse or dense, float32 or 8 bits at either end.

The outputs are taken in panels of 128, which leave as one vector of bytes. For each panel and a
tile of rows of x: every 32 outputs are summed in registers, one vector for each row, and put
aside; then the panel's sums are requantised in integers (see Requantizer), or, where y is
float32 or the epilogue is long, scaled one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.hexagon.code import hvx
from bscompile.targets.hexagon.packing import BIAS_LIMIT, LANES, PANEL, Requantizer
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dot import Product
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish
from bscompile.targets.kernels.code.narrow_inputs import Inputs, Preparation, quantizer

_UNROLL = 8  # steps of a block that are unrolled; wider blocks loop
SHORT = {"bias", "relu"}  # steps that requantisation in integers takes in


@dataclass(frozen=True)
class _Operands:
    words: Buffer
    starts: Buffer
    indptr: Buffer
    scale: Buffer
    sums: Buffer
    offsets: Buffer
    multipliers: Buffer
    constants: Buffer


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    rows: int,
    height: int,
    requantizer: Requantizer | None,
) -> Any:
    """The kernel.

    Args:
        problem: The layer.
        operands: As packed by ``packing.pack``.
        rows: Rows of x per tile.
        height: Outputs of a block row: 16 or 32.
        requantizer: How y leaves in integers; None takes the way through float32.
    """
    nest = _Nest(problem, operands, height, requantizer)

    def body(args: Arguments) -> None:
        with emit.opaque():
            nest.begin(args)
            emit.for_rows_of(args, (rows,), nest.tiles)

    return emit.generate("hvx_int8", problem, operands, body)


class _Nest:
    """The loops; arguments as of ``generate``."""

    def __init__(
        self,
        problem: Problem,
        operands: Sequence[tuple[str, Array]],
        height: int,
        requantizer: Requantizer | None,
    ) -> None:
        self._problem, self._requantizer = problem, requantizer
        self._steps = operands[0][1].shape[1]
        self._halves = LANES // height
        self._panels = -(-problem.n // PANEL)
        self._static = problem.activation == "static"
        # A row of x in whole words, and what its last block reads beyond it.
        width = problem.block[1] if problem.form == "block_sparse" else problem.k
        last = (-(-problem.k // width) - 1) * width + 4 * self._steps * self._halves
        self._stride = max(-(-problem.k // 4) * 4, last)

    def begin(self, args: Arguments) -> None:
        """Bring x into 8 bits and the bias into the units of the requantizer."""
        self._args, self._operands = args, _Operands(*args.operands)
        if str(args.x.dtype) == "uint8":
            self._inputs = self._copied(args)
        else:
            wide = Product(self._stride - self._problem.k + 1, "uint8", "int32", "int32", "hvx")
            self._inputs = Preparation(
                args, wide, self._problem.activation, 1, in_lines=False
            ).all_rows()
        # The same memory as words: bytes would be loaded one by one.
        shape = (args.m, self._stride // 4)
        self._words_of_x = T.decl_buffer(shape, "int32", data=self._inputs.x.data)
        if self._requantizer is not None:
            self._bias = T.sblock_alloc_buffer((self._panels * PANEL,), "int32")
            self._prepare_bias(self._requantizer)

    def tiles(self, rows: int) -> None:
        """Emit the loops for tiles of ``rows`` rows."""
        args = self._args
        with (
            T.serial(0, T.int64(emit.tile_count(args.m, rows))) as tile,
            T.serial(0, T.int64(self._panels)) as panel,
            emit.opaque(),
        ):
            row = T.bind(emit.tile_start(args.m, rows, tile))
            held = [T.sblock_alloc_buffer((PANEL,), "int32") for _ in range(rows)]
            with T.serial(0, T.int64(PANEL // LANES)) as part, emit.opaque():
                self._part(held, row, panel, part)
            for r, sums in enumerate(held):
                self._leave(sums, row + r, panel)

    # ------------------------------------------------------------ before

    def _copied(self, args: Arguments) -> Inputs:
        """X that comes as uint8, in rows that begin at whole words."""
        k = self._problem.k
        scratch = T.sblock_alloc_buffer((args.m, self._stride), "uint8")
        with T.serial(0, T.int64(args.m)) as r, emit.opaque():
            with T.serial(0, T.int64(k // PANEL)) as chunk:
                value = emit.load(args.x, r, chunk * PANEL, lanes=PANEL)
                emit.store(scratch, value, r, chunk * PANEL, lanes=PANEL)
            with T.serial(0, T.int64(k % PANEL)) as rest:
                at = k // PANEL * PANEL + rest
                T.buffer_store(scratch, args.x[r, at], [r, at])
        return Inputs(scratch)

    def _prepare_bias(self, requantizer: Requantizer) -> None:
        n, constants = self._problem.n, self._operands.constants
        unit = T.float32(2.0**requantizer.down)
        start = T.bind(T.float32(0.5) * unit + constants[5] * unit)
        bias = dict(self._args.steps).get("bias")
        limit = T.float32(BIAS_LIMIT)
        factor = T.bind(unit / constants[4])
        with T.serial(0, T.int64(n)) as i, emit.opaque():
            value = start if bias is None else start + bias[i] * factor
            value = T.bind(T.max(T.min(value, limit), T.float32(0) - limit))
            half = T.Select(value < T.float32(0), T.float32(-0.5), T.float32(0.5))
            T.buffer_store(self._bias, T.cast(value + half, "int32"), [i])  # cast truncates

    # ------------------------------------------------------------ sums

    def _part(self, held: list[Buffer], row: Expr, panel: Expr, part: Expr) -> None:
        """The sums of 32 outputs for each row of the tile."""
        totals = []
        for half in range(self._halves):
            block_row = (panel * (PANEL // LANES) + part) * self._halves + half
            totals.append(self._sums(len(held), row, T.bind(block_row)))
        for r, to in enumerate(held):
            values = [T.bind(emit.load(acc[r], 0, lanes=LANES)) for acc in totals]
            if self._halves == 2:
                values = [T.bind(v + hvx.turned(v)) for v in values]
                value = hvx.halves(*values)
            else:
                (value,) = values
            if self._static:
                at = panel * PANEL + part * LANES
                value = value + emit.load(self._operands.offsets, at, lanes=LANES)
            emit.store(to, value, part * LANES, lanes=LANES)

    def _sums(self, rows: int, row: Expr, block_row: Expr) -> list[Buffer]:
        operands = self._operands
        sums = [T.sblock_alloc_buffer((LANES,), "int32") for _ in range(rows)]
        for acc in sums:
            emit.store(acc, hvx.zeros(), 0, lanes=LANES)

        def step(block: Expr, start: Expr, number: Expr) -> None:
            weight = T.bind(emit.load(operands.words, block, number, 0, lanes=LANES))
            for r, acc in enumerate(sums):
                words = [
                    self._word(row + r, start + number * self._halves + half)
                    for half in range(self._halves)
                ]
                x = hvx.halves(*words) if self._halves == 2 else words[0]
                total = hvx.multiply_add(emit.load(acc, 0, lanes=LANES), x, weight)
                emit.store(acc, total, 0, lanes=LANES)

        with emit.loop(operands.indptr[block_row], operands.indptr[block_row + 1]) as index:
            block = T.bind(T.cast(index, "int64"))
            start = T.bind(T.cast(operands.starts[block], "int64"))
            loops = self._steps // _UNROLL if self._steps > _UNROLL else 0
            if loops:
                with T.serial(0, T.int64(loops)) as group:
                    for u in range(_UNROLL):
                        step(block, start, group * _UNROLL + u)
            for number in range(loops * _UNROLL, self._steps):
                step(block, start, T.int64(number))
        return sums

    def _word(self, row: Expr, word: Expr) -> Expr:
        """Four bytes of x in every lane."""
        return hvx.splat(self._words_of_x[row, word])

    # ------------------------------------------------------------ after

    def _leave(self, sums: Buffer, row: Expr, panel: Expr) -> None:
        """The sums of a panel for one row, finished and stored."""
        n = self._problem.n
        count = T.min(T.int64(n) - panel * PANEL, T.int64(PANEL)) if n % PANEL else PANEL
        if self._requantizer is None:
            with T.serial(0, T.int64(count)) as i, emit.opaque():
                self._finish_one(sums, row, panel * PANEL + i, i)
            return
        parts = [
            T.bind(self._requantized(sums, self._requantizer, at, panel * PANEL + at))
            for at in range(0, PANEL, LANES)
        ]
        narrow = T.bind(hvx.packed(parts, self._problem.y_dtype))
        if n % PANEL == 0:
            emit.store(self._args.y, narrow, row, panel * PANEL, lanes=PANEL)
            return
        with T.If(count == PANEL):
            with T.Then():
                emit.store(self._args.y, narrow, row, panel * PANEL, lanes=PANEL)
            with T.Else(), emit.opaque():
                rest = T.sblock_alloc_buffer((PANEL,), self._problem.y_dtype)
                emit.store(rest, narrow, 0, lanes=PANEL)
                with T.serial(0, T.int64(count)) as i:
                    T.buffer_store(self._args.y, rest[i], [row, panel * PANEL + i])

    def _requantized(self, sums: Buffer, requantizer: Requantizer, at: int, column: Expr) -> Expr:
        """Words that only have to be brought into the limits of y's dtype."""
        shifted = emit.load(sums, at, lanes=LANES)
        if requantizer.up:
            shifted = T.shift_left(shifted, hvx.splat(T.int32(requantizer.up)))
        factor = emit.load(self._operands.multipliers, column, lanes=LANES)
        value = hvx.high_product(shifted, factor) + emit.load(self._bias, column, lanes=LANES)
        value = T.bind(T.shift_right(value, hvx.splat(T.int32(requantizer.down))))
        if "relu" in self._problem.epilogue:
            zero = T.cast(self._operands.constants[5], "int32")
            value = T.max(value, hvx.splat(zero))
        return value

    def _finish_one(self, sums: Buffer, row: Expr, column: Expr, at: Expr) -> None:
        """One output through float32, as the dialect says."""
        inputs, operands = self._inputs, self._operands
        total = sums[at]
        if inputs.zero is not None and not self._static:
            total = total - inputs.zero[row] * operands.sums[column]
        scale = operands.constants[0] if inputs.scale is None else inputs.scale[row]
        value = T.bind(T.cast(T.bind(total), "float32") * (scale * operands.scale[column]))
        args = self._args
        if self._problem.y_dtype != "float32":
            args = replace(args, leave=quantizer(operands.constants, self._problem.y_dtype))
        finish(args, value, row, column, 1)

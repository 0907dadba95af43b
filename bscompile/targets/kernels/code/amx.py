"""y = x Wᵀ on Intel AMX: a tile of weights stays, up to four tiles of rows of x pass by.

A tile register holds 16 rows of 64 bytes. One instruction adds the product of a tile of x
[16 rows, inputs] and a tile of weights [inputs / group, outputs, group] to a tile of sums
[16 rows, outputs] in float32 or int32. x is prepared as for the other low-precision kernels,
in whole tiles of rows; the sums of a tile go through memory to the epilogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dot import BFLOAT16, VNNI, Product
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish
from bscompile.targets.kernels.code.narrow_inputs import Inputs, Preparation, quantizer
from bscompile.targets.kernels.vectors import pieces

ROWS = 16  # of x in a tile
_SUMS, _INPUTS, _WEIGHTS = (0, 1, 2, 3), (4, 5), 6  # tile registers
_ARCH_PRCTL, _ASK, _TILE_DATA = 158, 0x1023, 18  # Linux lends tiles to processes that ask


@dataclass(frozen=True)
class Unit:
    """What multiplies tiles.

    Attributes:
        product: Group size and dtypes; its own instruction is not used.
        multiply: Name of the tile instruction.
        call: (name, *arguments) -> emits one tile instruction; tests put an emulation here.
    """

    product: Product
    multiply: str
    call: Callable[..., None]


def instruction(name: str, *arguments: Expr) -> None:
    """Emit ``llvm.x86.<name>``."""
    T.evaluate(T.call_llvm_intrin(f"llvm.x86.{name}", *arguments, dtype="void"))


BFLOAT16_TILES = Unit(BFLOAT16, "tdpbf16ps", instruction)
INT8_TILES = Unit(VNNI, "tdpbusd", instruction)


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    unit: Unit,
    inputs: int,
    rows: int,
    lanes: int,
    tasks: int,
    split: str,
) -> Any:
    """The kernel.

    Args:
        problem: The layer; its block rows are at most 16 outputs high.
        operands: Those of code/narrow.py with values int32 [nnzb, steps, height], and after
            bounds (bfloat16) or sums (int8) the tile configuration uint8 [64].
        unit: What multiplies.
        inputs: Inputs of a tile; ``steps`` times the group is a multiple of it.
        rows: Tiles of rows that pass by one tile of weights, at most 4.
        lanes: 32-bit elements of one vector, for the epilogue.
        tasks: Parallel tasks.
        split: What the tasks share: ``outputs`` by bounds, or ``rows``.
    """
    nest = _Nest(problem, operands, unit, inputs, rows, lanes, tasks, split)
    mode = problem.activation or "round"

    def body(args: Arguments) -> None:
        with emit.opaque():
            if unit.product.llvm:
                T.sblock_attr({"pragma_import_llvm": unit.product.llvm})
            x = Preparation(
                args, unit.product, mode, tasks, row_multiple=ROWS * rows, reach=inputs
            ).all_rows()
            if problem.y_dtype != "float32":
                args = replace(args, leave=quantizer(args.operands[-1], problem.y_dtype))
            nest.emit(args, x)

    return emit.generate(f"amx_{problem.dtype}", problem, operands, body)


class _Nest:
    """The loops over block rows and tiles of rows; arguments as of ``generate``."""

    def __init__(
        self,
        problem: Problem,
        operands: Sequence[tuple[str, Array]],
        unit: Unit,
        inputs: int,
        rows: int,
        lanes: int,
        tasks: int,
        split: str,
    ) -> None:
        self._unit, self._inputs, self._rows = unit, inputs, rows
        self._lanes, self._tasks, self._split = lanes, tasks, split
        self._words = inputs // unit.product.group  # rows of a tile of weights
        _, steps, self._height = operands[0][1].shape
        self._chunks = steps // self._words
        self._block_rows = len(operands[2][1]) - 1
        self._last = problem.n - (self._block_rows - 1) * self._height

    def emit(self, args: Arguments, x: Inputs) -> None:
        """Emit everything after the preparation of x."""
        call = self._unit.call
        tiles = T.int64(emit.tile_count(args.m, ROWS * self._rows))
        bounds, config = args.operands[3], args.operands[4 if x.scale is None else 6]

        def task(p: Expr) -> None:
            ranges = emit.ranges_of(p, self._tasks, self._split, tiles, self._block_rows, bounds)
            tile_range, row_range = ranges
            with emit.opaque():
                shape = (ROWS * self._rows, self._height)
                sums = T.sblock_alloc_buffer(shape, self._unit.product.total)
                call("ldtilecfg", config.access_ptr("r"))
                with emit.loop(*row_range) as i, emit.loop(*tile_range) as tile, emit.opaque():
                    row = T.bind(tile * (ROWS * self._rows))
                    self._tile(args, x, sums, T.bind(i), row)
                call("tilerelease")

        ask = (T.int64(_ARCH_PRCTL), T.int64(_ASK), T.int64(_TILE_DATA))
        T.evaluate(T.call_extern("int64", "syscall", *ask))
        emit.parallel_tasks(self._tasks, task)

    def _tile(self, args: Arguments, x: Inputs, sums: Buffer, block_row: Expr, row: Expr) -> None:
        values, starts, indptr, _ = args.operands[:4]
        call, product = self._unit.call, self._unit.product
        width = int(x.x.shape[1])
        stride = T.int64(width * (2 if product.element == "uint16" else 1))
        for i in range(self._rows):
            call("tilezero", T.uint8(_SUMS[i]))
        with emit.loop(indptr[block_row], indptr[block_row + 1]) as index:
            block = T.bind(T.cast(index, "int64"))
            start = T.bind(T.cast(starts[block], "int64"))
            with T.serial(0, T.int64(self._chunks)) as chunk:
                at = (block * self._chunks + chunk) * (self._words * self._height)
                weights = values.access_ptr("r", offset=at)
                call("tileloadd64", T.uint8(_WEIGHTS), weights, T.int64(4 * self._height))
                column = start + chunk * self._inputs
                for i in range(self._rows):
                    source = x.x.access_ptr("r", offset=(row + ROWS * i) * width + column)
                    tile = T.uint8(_INPUTS[i % len(_INPUTS)])
                    call("tileloadd64", tile, source, stride)
                    call(self._unit.multiply, T.uint8(_SUMS[i]), tile, T.uint8(_WEIGHTS))
        for i in range(self._rows):
            to = sums.access_ptr("w", offset=i * ROWS * self._height)
            call("tilestored64", T.uint8(_SUMS[i]), to, T.int64(4 * self._height))
        count = T.min(T.int64(args.m) - row, T.int64(ROWS * self._rows))

        def finish_rows(outputs: int) -> None:
            with T.serial(0, count) as r, emit.opaque():
                for at, size in pieces(outputs, self._lanes):
                    total = T.bind(emit.load(sums, r, at, lanes=size))
                    to = block_row * self._height + at
                    value = T.bind(x.real(args, total, row + r, to, size))
                    finish(args, value, row + r, to, size)

        if self._last == self._height:
            finish_rows(self._height)
            return
        with T.If(block_row < self._block_rows - 1):
            with T.Then():
                finish_rows(self._height)
            with T.Else():
                finish_rows(self._last)

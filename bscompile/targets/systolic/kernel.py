"""The host code around a layer on the array: quantise x, run the commands, scale y.

For each run of at most DEPTH rows of x

    x  int8 [depth, columns size]   quantised, less 128, so that it fits the array; padded with 0
    y  int32 [depth, rows size]     = x Wᵀ, by the driver's bind, run and wait
    y' = s scale[out] (y - z Σ w)   with s, z of x's quantisation; then the epilogue, and where
                                    y leaves in 8 bits its quantisation

with buffers of their own, in words of the array: no row of x may begin inside a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.devices.systolic import symbol
from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dot import PLAIN
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish
from bscompile.targets.kernels.code.narrow_inputs import Inputs, Preparation, quantizer
from bscompile.targets.kernels.vectors import pieces
from bscompile.targets.systolic.hardware import SystolicSpec

_WEIGHTS, _X, _Y = range(3)  # regions of driver/systolic.h
_LANES = 16  # of the host's loops; LLVM cuts them to what the host has
_SIGN = 128  # prepared x is unsigned, the array's elements are signed


def generate(
    problem: Problem, operands: Sequence[tuple[str, Array]], hardware: SystolicSpec
) -> Any:
    """The kernel for operands as packed by templates.pack.

    Args:
        problem: The layer, int8.
        operands: blocks, commands, scale, sums, constants.
        hardware: The array.
    """
    size = hardware.size
    k, n = (-(-length // size) * size for length in (problem.k, problem.n))
    depth = hardware.depth if problem.m is None else max(1, min(problem.m, hardware.depth))

    def body(args: Arguments) -> None:
        with emit.opaque():
            inputs = Preparation(args, PLAIN, problem.activation, tasks=1).all_rows()
            if problem.y_dtype != "float32":
                args = replace(args, leave=quantizer(args.operands[-1], problem.y_dtype))
            x = T.sblock_alloc_buffer((depth, k), "int8")
            y = T.sblock_alloc_buffer((depth, n), "int32")
            with T.serial(0, T.int64(emit.tile_count(args.m, depth))) as run, emit.opaque():
                start = T.bind(run * depth)
                rows = T.bind(T.min(T.int64(depth), T.int64(args.m) - start))
                _fill(inputs.x, x, start, rows, problem.k)
                _run(args, size, x, y, rows)
                _finish(args, inputs, y, start, rows, problem.n)

    return emit.generate(f"array{size}", problem, operands, body)


def _fill(prepared: Buffer, x: Buffer, start: Expr, rows: Expr, k: int) -> None:
    """Rows from ``start`` on, signed, with zeros beside them where the last block is cut."""
    with T.serial(0, rows) as row:

        def copy(column: Expr, lanes: int) -> None:
            value = T.cast(
                emit.load(prepared, start + row, column, lanes=lanes), _vector("int32", lanes)
            )
            signed = value - emit.splat(T.int32(_SIGN), lanes)
            emit.store(x, T.cast(signed, _vector("int8", lanes)), row, column, lanes=lanes)

        _across(k, copy)
        with T.serial(0, T.int64(int(x.shape[1]) - k)) as column:
            T.buffer_store(x, T.int8(0), [row, k + column])


def _run(args: Arguments, size: int, x: Buffer, y: Buffer, rows: Expr) -> None:
    blocks, commands = args.operands[:2]
    block = size * size
    # Named by their pointers, buffers keep their whole size, whatever of them is read here. And y
    # comes before x: TVM gives memory away after its last use, which for x is its bind.
    for region, buffer, length in (
        (_Y, y, T.int64(int(y.shape[0]) * int(y.shape[1]) * 4)),
        (_WEIGHTS, blocks, blocks.shape[0] * block),
        (_X, x, T.int64(int(x.shape[0]) * int(x.shape[1]))),
    ):
        _call(symbol(size, "bind"), T.int32(region), buffer.data, T.cast(length, "int64"))
    count = T.cast(commands.shape[0], "int32")
    _call(symbol(size, "run"), commands.data, count, T.cast(rows, "int32"))
    _call(symbol(size, "wait"), dtype="int64")


def _call(name: str, *arguments: Expr, dtype: str = "int32") -> None:
    """Call the driver; it answers 0 or an error number, wait the cycles or a negative one."""
    answer = T.bind(T.call_extern(dtype, name, *arguments))
    fine = answer == T.int32(0) if dtype == "int32" else answer >= T.int64(0)
    with T.Assert(fine, f"{name} failed: the systolic array or its driver is out of order"):
        pass


def _finish(args: Arguments, inputs: Inputs, y: Buffer, start: Expr, rows: Expr, n: int) -> None:
    scale, sums = args.operands[2:4]
    assert inputs.scale is not None
    assert inputs.zero is not None
    x_scale, x_zero = inputs.scale, inputs.zero
    with T.serial(0, rows) as index, emit.opaque():
        row = T.bind(start + index)
        zero = T.bind(x_zero[row] - _SIGN)
        factor = T.bind(x_scale[row])

        def write(column: Expr, lanes: int) -> None:
            moved = emit.splat(zero, lanes) * emit.load(sums, column, lanes=lanes)
            exact = T.bind(emit.load(y, index, column, lanes=lanes) - moved)
            unit = emit.splat(factor, lanes) * emit.load(scale, column, lanes=lanes)
            real = T.cast(exact, _vector("float32", lanes)) * unit
            finish(args, T.bind(real), row, column, lanes)

        _across(n, write)


def _across(width: int, body: Callable[[Expr, int], None]) -> None:
    """Call body(column, lanes) over [0, width): a loop of vectors, then the rest."""
    whole = width // _LANES
    with T.serial(0, T.int64(whole)) as group, emit.opaque():
        body(T.bind(group * _LANES), _LANES)
    for at, lanes in pieces(width % _LANES, _LANES):
        body(T.int64(whole * _LANES + at), lanes)


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"

"""x as the dot product instructions want it: rounded or quantised into a scratch tensor.

The scratch tensor is [m, k + pad] in the product's element type; the pad is zero, so that a last
group of inputs may reach over the end of a row. Rows are prepared by all tasks together before
any of them multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from bscompile.dialect.quantization import LIMITS
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dot import Product, to_bfloat16
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.vector_math import nearest

_LANES = 16
_SERIAL = 1 << 14  # elements of x that one task prepares in less than starting others takes


@dataclass(frozen=True)
class Inputs:
    """x, prepared.

    Attributes:
        x: [m, k + pad] in the product's element type.
        scale: float32 [m], s of each row; None for bfloat16.
        zero: int32 [m], z of each row, in the terms of ``x``; None for bfloat16.
        shift: What the instruction takes away from each x.
    """

    x: Buffer
    scale: Buffer | None = None
    zero: Buffer | None = None
    shift: int = 0

    def real(self, args: Arguments, total: Expr, row: Expr, column: Expr, lanes: int) -> Expr:
        """A sum as the float32 that it stands for; operands 4 and 5 are scale and sums of W."""
        if self.scale is None or self.zero is None:
            return total
        weight_scale, weight_sums = (
            emit.load(args.operands[i], column, lanes=lanes) for i in (4, 5)
        )
        moved = total - emit.splat(self.zero[row] - self.shift, lanes) * weight_sums
        factor = emit.splat(self.scale[row], lanes) * weight_scale
        return T.cast(T.bind(moved), _vector("float32", lanes)) * factor


def prepare(
    args: Arguments,
    product: Product,
    mode: str,
    tasks: int,
    *,
    row_multiple: int = 1,
    reach: int = 0,
) -> Inputs:
    """Emit the preparation of all rows.

    Args:
        args: The kernel's parameters; in static mode the last operand holds float32 [s, z].
        product: Decides what x becomes.
        mode: ``round`` for bfloat16, or ``row``, ``tensor``, ``static`` of quantization.py.
        tasks: Parallel tasks.
        row_multiple: The scratch tensor's rows are a multiple of this; those over m hold nothing.
        reach: Inputs over the end of a row that may be read; at least a group's.
    """
    k = int(args.x.shape[1])
    held = args.m if row_multiple == 1 else emit.tile_count(args.m, row_multiple) * row_multiple
    scratch = T.sblock_alloc_buffer((held, k + max(reach, product.group - 1)), product.element)
    if mode == "round":
        inputs = Inputs(scratch)
    else:
        scale = T.sblock_alloc_buffer((args.m,), "float32")
        zero = T.sblock_alloc_buffer((args.m,), "int32")
        inputs = Inputs(scratch, scale, zero, product.shift)
    if isinstance(args.m, int) and args.m * k <= _SERIAL:
        tasks = 1
    rows = T.int64(args.m)
    limits = None
    if mode == "tensor":
        limits = T.sblock_alloc_buffer((2,), "float32")
        _range_of_all(args, tasks, limits)

    def task(p: Expr) -> None:
        with emit.loop(*emit.share(rows, p, tasks)) as r, emit.opaque():
            row = T.bind(r)
            _pad(scratch, row, k)
            if mode == "round":
                _each(k, lambda at, size: _round(args, scratch, row, at, size))
            elif str(args.x.dtype) != "float32":
                _copy_integers(args, inputs, row)
            else:
                _quantize_row(args, inputs, mode, row, limits)

    emit.parallel_tasks(tasks, task)
    return inputs


def _each(k: int, body: object) -> None:
    """Call body(at, lanes) over [0, k): vectors, the last one moved back; scalars if k is small."""
    assert callable(body)
    if k < _LANES:
        with T.serial(0, T.int64(k)) as at:
            body(at, 1)
        return
    with T.serial(0, T.int64(-(-k // _LANES))) as group, emit.opaque():
        body(T.bind(T.min(group * _LANES, T.int64(k - _LANES))), _LANES)


def _pad(scratch: Buffer, row: Expr, k: int) -> None:
    for column in range(k, int(scratch.shape[1])):
        T.buffer_store(scratch, T.cast(T.int32(0), str(scratch.dtype)), [row, column])


def _round(args: Arguments, scratch: Buffer, row: Expr, at: Expr, size: int) -> None:
    value = emit.load(args.x, row, at, lanes=size)
    emit.store(scratch, to_bfloat16(value, size), row, at, lanes=size)


def _copy_integers(args: Arguments, inputs: Inputs, row: Expr) -> None:
    """X that comes in 8 bits; signed numbers move up by 128, and their zero with them."""
    shift = 128 if str(args.x.dtype) == "int8" else 0
    constants = args.operands[-1]

    def copy(at: Expr, size: int) -> None:
        wide = T.cast(emit.load(args.x, row, at, lanes=size), _vector("int32", size))
        _store(inputs.x, wide + emit.splat(T.int32(shift), size), row, at, size)

    _each(int(args.x.shape[1]), copy)
    T.buffer_store(inputs.scale, constants[0], [row])
    T.buffer_store(inputs.zero, T.cast(constants[1], "int32") + shift, [row])


def _quantize_row(
    args: Arguments, inputs: Inputs, mode: str, row: Expr, limits: Buffer | None
) -> None:
    k = int(args.x.shape[1])
    if mode == "static":
        # [s, z, lowest, highest of q]; signed q moves up by 128 with its zero.
        scale, zero, low, high = (args.operands[-1][i] for i in range(4))
        shift = T.bind(-low)
    else:
        if mode == "row":
            limits = T.sblock_alloc_buffer((2,), "float32")
            T.buffer_store(limits, T.float32(0), [0])
            T.buffer_store(limits, T.float32(0), [1])
            _extend(args, row, limits)
        assert limits is not None
        width = T.bind(limits[1] - limits[0])
        s = T.bind(width / T.float32(255))
        scale = T.bind(T.Select(s > T.float32(0), s, T.float32(1)))
        low, high, shift = T.float32(0), T.float32(255), T.float32(0)
    inverse = T.bind(T.float32(1) / scale)

    def divide(value: Expr, size: int) -> Expr:
        if mode == "row":
            return value * emit.splat(inverse, size)
        return value / emit.splat(scale, size)

    if mode != "static":
        assert limits is not None
        negative = T.bind(T.float32(0) - limits[0])
        whole = T.bind(T.nearbyint(T.bind(divide(negative, 1))))
        zero = T.bind(T.max(T.min(whole, high), low))
    offset = T.bind(T.cast(zero + shift, "int32"))

    def quantize(at: Expr, size: int) -> None:
        ratio = divide(emit.load(args.x, row, at, lanes=size), size)
        # Limits first: rounding keeps whole limits.
        ratio = T.max(T.min(ratio, emit.splat(high - zero, size)), emit.splat(low - zero, size))
        _store(inputs.x, nearest(ratio, size) + emit.splat(offset, size), row, at, size)

    _each(k, quantize)
    T.buffer_store(inputs.scale, scale, [row])
    T.buffer_store(inputs.zero, offset, [row])


def quantizer(constants: Buffer, dtype: str) -> Callable[[Expr, int], Expr]:
    """(value, lanes) -> clip(rint(value / s') + z') of ``dtype``, with s' and z' in constants."""
    low, high = LIMITS[dtype]

    def quantize(value: Expr, lanes: int) -> Expr:
        scale, zero = (emit.splat(constants[i], lanes) for i in (4, 5))
        offset = emit.splat(T.cast(constants[5], "int32"), lanes)
        # Limits first: rounding keeps whole limits.
        ratio = T.min(value / scale, emit.constant(high, lanes) - zero)
        ratio = T.max(ratio, emit.constant(low, lanes) - zero)
        return T.cast(nearest(ratio, lanes) + offset, _vector(dtype, lanes))

    return quantize


def _store(x: Buffer, value: Expr, row: Expr, at: Expr, size: int) -> None:
    emit.store(x, T.cast(value, _vector(str(x.dtype), size)), row, at, lanes=size)


def _extend(args: Arguments, row: Expr, limits: Buffer) -> None:
    """Widen limits [low, high] to hold every x of a row."""
    k = int(args.x.shape[1])
    lanes = 1 if k < _LANES else _LANES
    low, high = emit.accumulators(2, lanes)
    for acc, end in ((low, 0), (high, 1)):
        emit.store(acc, emit.splat(limits[end], lanes), 0, lanes=lanes)

    def widen(at: Expr, size: int) -> None:
        value = T.bind(emit.load(args.x, row, at, lanes=size))
        emit.store(low, T.min(emit.load(low, 0, lanes=size), value), 0, lanes=size)
        emit.store(high, T.max(emit.load(high, 0, lanes=size), value), 0, lanes=size)

    _each(k, widen)
    for lane in range(lanes):
        T.buffer_store(limits, T.min(limits[0], low[lane]), [0])
        T.buffer_store(limits, T.max(limits[1], high[lane]), [1])


def _range_of_all(args: Arguments, tasks: int, limits: Buffer) -> None:
    """The limits of all of x: those of each task's rows, then of the tasks."""
    parts = T.sblock_alloc_buffer((tasks, 2), "float32")

    def task(p: Expr) -> None:
        with emit.opaque():
            mine = T.sblock_alloc_buffer((2,), "float32")
            for end in range(2):
                T.buffer_store(mine, T.float32(0), [end])
            with emit.loop(*emit.share(T.int64(args.m), p, tasks)) as r, emit.opaque():
                _extend(args, T.bind(r), mine)
            for end in range(2):
                T.buffer_store(parts, mine[end], [p, end])

    emit.parallel_tasks(tasks, task)
    for end, choose in ((0, T.min), (1, T.max)):
        T.buffer_store(limits, T.float32(0), [end])
        for p in range(tasks):
            T.buffer_store(limits, choose(limits[end], parts[p, end]), [end])


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"

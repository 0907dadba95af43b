"""x as the dot product instructions want it: rounded or quantised into a scratch tensor.

The scratch tensor is [m, k + pad] in the product's element type; the pad is zero as far as a last
group of inputs may reach over the end of a row. Tasks that share rows prepare each tile right
before they multiply it, which keeps it in the nearest cache and starts no other parallel region;
others prepare all rows together before any of them multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import tirx as T

from bscompile.dialect.quantization import LIMITS
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dot import Product, clipped_bytes, rounded_words, to_bfloat16
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.vector_math import nearest

_LANES = 16
_BYTES = 64  # inputs that are quantised side by side where an instruction clips so many
_LINE = 64  # bytes of a cache line
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


class Preparation:
    """Emits the preparation of rows, of any of them and in any order, into ``inputs``.

    Args:
        args: The kernel's parameters; in static mode the last operand holds float32 [s, z].
        product: Decides what x becomes.
        mode: ``round`` for bfloat16, or ``row``, ``tensor``, ``static`` of quantization.py.
        tasks: Parallel tasks that look for the limits of all of x, where the mode needs them.
        row_multiple: The scratch tensor's rows are a multiple of this; those over m hold nothing.
        reach: Inputs over the end of a row that may be read; at least a group's.
        in_lines: Whether rows begin with cache lines, an odd number of them apart, so that no
            word lies in two and few rows share a set; else they are as short as they can be.
    """

    def __init__(
        self,
        args: Arguments,
        product: Product,
        mode: str,
        tasks: int,
        *,
        row_multiple: int = 1,
        reach: int = 0,
        in_lines: bool = True,
    ) -> None:
        self._args, self._product, self._mode = args, product, mode
        self._tasks = 1 if _is_small(args) else tasks
        k = int(args.x.shape[1])
        held = args.m if row_multiple == 1 else emit.tile_count(args.m, row_multiple) * row_multiple
        self._needed = k + max(reach, product.group - 1)
        width = _in_lines(self._needed, product) if in_lines else self._needed
        scratch = T.sblock_alloc_buffer((held, width), product.element)
        if mode == "round":
            self.inputs = Inputs(scratch)
        else:
            scale = T.sblock_alloc_buffer((args.m,), "float32")
            zero = T.sblock_alloc_buffer((args.m,), "int32")
            self.inputs = Inputs(scratch, scale, zero, product.shift)
        self._limits = T.sblock_alloc_buffer((2,), "float32") if mode == "tensor" else None
        if self._limits is not None:
            _range_of_all(args, self._tasks, self._limits, product.clips)

    def rows(self, first: Expr, last: Expr) -> None:
        """Emit the preparation of rows [first, last)."""
        args, inputs, k = self._args, self.inputs, int(self._args.x.shape[1])
        with emit.loop(first, last) as r, emit.opaque():
            row = T.bind(r)
            _pad(inputs.x, row, k, self._needed)
            if self._mode == "round":
                _each(k, lambda at, size: _round(args, inputs.x, row, at, size))
            elif str(args.x.dtype) != "float32":
                _copy_integers(args, inputs, row)
            else:
                _quantize_row(args, self._product, inputs, self._mode, row, self._limits)

    def all_rows(self) -> Inputs:
        """Emit that of all rows, in a parallel region of its own where it is worth that."""
        emit.parallel_tasks(
            self._tasks,
            lambda p: self.rows(*emit.share(T.int64(self._args.m), p, self._tasks)),
        )
        return self.inputs


def _in_lines(width: int, product: Product) -> int:
    """The length of a row that takes an odd number of whole cache lines."""
    line = _LINE // np.dtype(product.element).itemsize
    return (-(-width // line) | 1) * line


def _is_small(args: Arguments) -> bool:
    return isinstance(args.m, int) and args.m * int(args.x.shape[1]) <= _SERIAL


def _each(k: int, body: Callable[[Expr, int], None], lanes: int = _LANES) -> None:
    """Call body(at, lanes) over [0, k): vectors, the last one moved back; scalars if k is small."""
    if k < _LANES:
        with T.serial(0, T.int64(k)) as at:
            body(at, 1)
        return
    lanes = lanes if k >= lanes else _LANES
    with T.serial(0, T.int64(-(-k // lanes))) as group, emit.opaque():
        body(T.bind(T.min(group * lanes, T.int64(k - lanes))), lanes)


def _pad(scratch: Buffer, row: Expr, k: int, end: int) -> None:
    for column in range(k, end):
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
    args: Arguments,
    product: Product,
    inputs: Inputs,
    mode: str,
    row: Expr,
    limits: Buffer | None,
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
            _extend(args, row, limits, product.clips)
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

    def ratio(at: Expr, size: int, clip: bool) -> Expr:
        value = divide(emit.load(args.x, row, at, lanes=size), size)
        if not clip:
            return value
        # Limits first: rounding keeps whole limits.
        return T.max(T.min(value, emit.splat(high - zero, size)), emit.splat(low - zero, size))

    def quantize(at: Expr, size: int) -> None:
        if size == _BYTES:  # only a given scale lets numbers leave the range of int32
            parts = [
                rounded_words(ratio(at + part, _LANES, clip=mode == "static"))
                + emit.splat(offset, _LANES)
                for part in range(0, _BYTES, _LANES)
            ]
            emit.store(inputs.x, clipped_bytes([T.bind(p) for p in parts]), row, at, lanes=size)
        else:
            whole = nearest(ratio(at, size, clip=True), size)
            _store(inputs.x, whole + emit.splat(offset, size), row, at, size)

    _each(k, quantize, _BYTES if product.clips else _LANES)
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


def _extend(args: Arguments, row: Expr, limits: Buffer, halves: bool) -> None:
    """Widen limits [low, high] to hold every x of a row.

    Lanes come together by ``halves`` on x86 alone: the code of other processors was not measured,
    and qemu-riscv64 before 8.0 dies of what follows in it (see vector_math.nearest).
    """
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
    for acc, end, choose in ((low, 0, T.min), (high, 1, T.max)):
        if halves:
            value = emit.folded(emit.load(acc, 0, lanes=lanes), lanes, choose)
            T.buffer_store(limits, value, [end])
            continue
        for lane in range(lanes):
            T.buffer_store(limits, choose(limits[end], acc[lane]), [end])


def _range_of_all(args: Arguments, tasks: int, limits: Buffer, halves: bool) -> None:
    """The limits of all of x: those of each task's rows, then of the tasks."""
    parts = T.sblock_alloc_buffer((tasks, 2), "float32")

    def task(p: Expr) -> None:
        with emit.opaque():
            mine = T.sblock_alloc_buffer((2,), "float32")
            for end in range(2):
                T.buffer_store(mine, T.float32(0), [end])
            with emit.loop(*emit.share(T.int64(args.m), p, tasks)) as r, emit.opaque():
                _extend(args, T.bind(r), mine, halves)
            for end in range(2):
                T.buffer_store(parts, mine[end], [p, end])

    emit.parallel_tasks(tasks, task)
    for end, choose in ((0, T.min), (1, T.max)):
        T.buffer_store(limits, T.float32(0), [end])
        for p in range(tasks):
            T.buffer_store(limits, choose(limits[end], parts[p, end]), [end])


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"

"""Between real numbers and the 8-bit ones that int8 layers multiply.

Before the product, x [m, k] becomes integers by launches of their own, one thread block for each
row; after it, a sum becomes what it stands for:

    y = s[row] scale[out] (sum - z[row] Σ w[out])

with s and z of the row and Σ w of the whole row of W, see bscompile.dialect.quantization.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.dialect.quantization import LIMITS
from bscompile.targets.base import Problem

Expr = Any
Buffer = Any

_WARP, _THREADS = 32, 128


@dataclass(frozen=True)
class Integers:
    """What the sums of an int8 layer stand for.

    Attributes:
        scale: float32 [m], s of each row; None where x comes quantised.
        zero: float32 [m], z of each row; None likewise.
        weight_scale: float32 [n].
        weight_sums: int32 [n].
        constants: float32 [6], see ``packing_narrow.quantized_operands``.
    """

    scale: Buffer | None
    zero: Buffer | None
    weight_scale: Buffer
    weight_sums: Buffer
    constants: Buffer

    def _of_row(self, row: Expr) -> tuple[Expr, Expr]:
        if self.scale is None or self.zero is None:
            return self.constants[0], self.constants[1]
        return self.scale[row], self.zero[row]

    def real(self, total: Expr, row: Expr, column: Expr) -> Expr:
        """An int32 sum as the float32 that it stands for."""
        scale, zero = self._of_row(row)
        moved = total - T.cast(zero, "int32") * self.weight_sums[column]
        return T.cast(moved, "float32") * (scale * self.weight_scale[column])

    def leave(self, value: Expr, dtype: str) -> Expr:
        """clip(rint(value / s') + z') of ``dtype``."""
        low, high = LIMITS[dtype]
        scale, zero = self.constants[4], self.constants[5]
        # Limits first: rounding keeps whole limits.
        ratio = T.min(value / scale, T.float32(high) - zero)
        ratio = T.max(ratio, T.float32(low) - zero)
        return T.cast(T.cast(T.nearbyint(ratio) + zero, "int32"), dtype)

    def reads(self, row: Expr, column: Expr) -> list[Any]:
        """The elements that y[row, column] takes."""
        return [
            *self._of_row(row),
            self.weight_scale[column],
            self.weight_sums[column],
            self.constants[4],
            self.constants[5],
        ]


def quantized(
    m: Expr, x: Buffer, operands: tuple[Buffer, ...], problem: Problem
) -> tuple[Buffer, Integers]:
    """Emit what makes x integers, where it does not come so.

    Args:
        m: Rows of x.
        x: [m, k] in float32, uint8 or int8.
        operands: Scale, sums and constants.
        problem: The layer.

    Returns:
        (what is multiplied: uint8 where x was float32, what sums stand for).
    """
    if problem.x_dtype != "float32":
        return x, Integers(None, None, *operands)
    scratch = T.sblock_alloc_buffer((m, problem.k), "uint8")
    scale, zero = (T.sblock_alloc_buffer((m,), "float32") for _ in range(2))
    limits = T.sblock_alloc_buffer((m, 2), "float32") if problem.activation == "tensor" else None
    if limits is not None:

        def keep(row: Expr, thread: Expr) -> None:
            low, high = _limits(problem.k, thread, lambda at: (x[row, at], x[row, at]))
            with T.If(thread == 0), T.Then():
                T.buffer_store(limits, low, [row, 0])
                T.buffer_store(limits, high, [row, 1])

        _for_rows(m, keep)
    _for_rows(m, lambda row, thread: _row(problem, m, x, row, thread, limits, scratch,
                                          scale, zero, operands[2]))  # fmt: skip
    return scratch, Integers(scale, zero, *operands)


def _for_rows(m: Expr, body: Callable[[Expr, Expr], None]) -> None:
    """One launch: a thread block for each row."""
    with (
        T.thread_binding(0, m, "blockIdx.x") as row,
        T.thread_binding(0, _THREADS, "threadIdx.x") as thread,
        T.sblock("quantise"),
    ):
        T.reads()
        T.writes()
        body(row, thread)


def _row(
    problem: Problem,
    m: Expr,
    x: Buffer,
    row: Expr,
    thread: Expr,
    limits: Buffer | None,
    scratch: Buffer,
    scale_of: Buffer,
    zero_of: Buffer,
    constants: Buffer,
) -> None:
    """Quantise one row by the threads of a block."""
    mode, k = problem.activation, problem.k
    if mode == "static":
        # [s, z, lowest, highest of q]; signed q moves up by 128 with its zero.
        scale, zero, low, high = (constants[i] for i in range(4))
        shift = T.bind(T.float32(0) - low)
    else:
        if limits is None:
            least, most = _limits(k, thread, lambda at: (x[row, at], x[row, at]))
        else:
            least, most = _limits(m, thread, lambda at: (limits[at, 0], limits[at, 1]))
        step = T.bind((most - least) / T.float32(255))
        scale = T.bind(T.Select(step > T.float32(0), step, T.float32(1)))
        low, high, shift = T.float32(0), T.float32(255), T.float32(0)
    inverse = T.bind(T.float32(1) / scale)

    def divide(value: Expr) -> Expr:
        return value * inverse if mode == "row" else value / scale

    if mode != "static":
        nearest = T.nearbyint(T.bind(divide(T.float32(0) - least)))
        zero = T.bind(T.max(T.min(nearest, high), low))
    with T.serial(0, T.int64(-(-k // _THREADS))) as turn:
        at = T.bind(turn * _THREADS + thread)
        with T.If(at < k), T.Then():
            # Limits first: rounding keeps whole limits.
            ratio = T.max(T.min(divide(x[row, at]), high - zero), low - zero)
            number = T.cast(T.nearbyint(ratio) + (zero + shift), "int32")
            T.buffer_store(scratch, T.cast(number, "uint8"), [row, at])
    with T.If(thread == 0), T.Then():
        T.buffer_store(scale_of, scale, [row])
        T.buffer_store(zero_of, zero + shift, [row])


def _limits(
    count: Expr, thread: Expr, pair: Callable[[Expr], tuple[Expr, Expr]]
) -> tuple[Expr, Expr]:
    """The least and the greatest of ``count`` pairs and 0, known to all threads of the block."""
    mine = T.sblock_alloc_buffer((2,), "float32", scope="local")
    warps = T.sblock_alloc_buffer((_THREADS // _WARP, 2), "float32", scope="shared")
    chosen = (T.min, T.max)
    for end in range(2):
        T.buffer_store(mine, T.float32(0), [end])
    turns = -(-count // _THREADS) if isinstance(count, int) else T.floordiv(
        count + (_THREADS - 1), T.int64(_THREADS)
    )  # fmt: skip
    with T.serial(0, T.cast(turns, "int64")) as turn:
        at = T.bind(turn * _THREADS + thread)
        with T.If(at < count), T.Then():
            for end, value in enumerate(pair(at)):
                T.buffer_store(mine, chosen[end](mine[end], value), [end])
    for distance in (16, 8, 4, 2, 1):
        for end in range(2):
            other = T.tvm_warp_shuffle_xor(
                T.tvm_warp_activemask(), mine[end], distance, _WARP, _WARP
            )
            T.buffer_store(mine, chosen[end](mine[end], other), [end])
    with T.If(T.floormod(thread, _WARP) == 0), T.Then():
        for end in range(2):
            T.buffer_store(warps, mine[end], [T.floordiv(thread, _WARP), end])
    T.evaluate(T.tvm_storage_sync("shared"))
    ends = []
    for end in range(2):
        value = warps[0, end]
        for warp in range(1, _THREADS // _WARP):
            value = chosen[end](value, warps[warp, end])
        ends.append(T.bind(value))
    return ends[0], ends[1]

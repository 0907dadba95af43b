"""Tensors whose axes have names: how generated code reads one storage order or another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Buffer, Expr
from bscompile.targets.kernels.vectors import pieces

Size = int | str  # a string names a symbolic size


@dataclass(frozen=True)
class Tensor:
    """A float32 tensor as it lies in memory.

    Attributes:
        name: The parameter's name.
        axes: One letter for each axis in storage order, such as ``bshd``.
        sizes: Its sizes, in the same order.
    """

    name: str
    axes: str
    sizes: tuple[Size, ...]

    def size(self, axis: str) -> Size:
        """The size of one axis, 1 where the tensor has none of that name."""
        return self.sizes[self.axes.index(axis)] if axis in self.axes else 1


@dataclass(frozen=True)
class Argument:
    """A tensor inside a generated function."""

    tensor: Tensor
    buffer: Buffer

    def at(self, **where: Expr) -> list[Expr]:
        """The index of an element; axes of size one are always at 0, other letters ignored."""
        pairs = zip(self.tensor.axes, self.tensor.sizes, strict=True)
        return [T.int64(0) if size == 1 else where[axis] for axis, size in pairs]

    def load(self, lanes: int = 1, **where: Expr) -> Expr:
        """``lanes`` elements along the last axis."""
        return emit.load(self.buffer, *self.at(**where), lanes=lanes)

    def store(self, value: Expr, lanes: int = 1, **where: Expr) -> None:
        """Write ``lanes`` elements along the last axis."""
        emit.store(self.buffer, value, *self.at(**where), lanes=lanes)


def function(
    name: str,
    tensors: Sequence[Tensor],
    body: Callable[[list[Argument], Callable[[Size], Expr]], None],
) -> Any:
    """The PrimFunc of some tensors, the last one its output.

    Args:
        name: The function's name.
        tensors: The parameters in order.
        body: Emits the statements from the arguments and from a function that turns a size
            into an expression.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8})
            declared = [(t.name, t.sizes, "float32") for t in tensors]
            buffers, size = parameters(declared)
            arguments = [Argument(*pair) for pair in zip(tensors, buffers, strict=True)]
            body(arguments, size)
        # The module that takes the function gives it its name.
        return builder.get().without_attr("global_symbol")


def parameters(
    declared: Sequence[tuple[str, Sequence[Size], str]],
) -> tuple[list[Buffer], Callable[[Size], Expr]]:
    """Declare the parameters of the function that is being made.

    Args:
        declared: (name, sizes, dtype) of each; equal strings among the sizes are one size.

    Returns:
        Their buffers, and a function that turns a size into an expression.
    """
    handles = [T.arg(name, T.handle()) for name, _, _ in declared]
    symbols: dict[str, Expr] = {}

    def size(value: Size) -> Expr:
        if isinstance(value, int):
            return value
        if value not in symbols:
            symbols[value] = T.int64()
        return symbols[value]

    buffers = [
        T.match_buffer(handle, tuple(map(size, sizes)), dtype, align=4)
        for handle, (_, sizes, dtype) in zip(handles, declared, strict=True)
    ]
    return buffers, size


def in_rows(argument: Argument, rows: Expr, width: Expr) -> Argument:
    """The same memory as [rows, width], its axes called r and c."""
    tensor = Tensor(argument.tensor.name, "rc", ("rows", "width"))  # of any size: never just 0
    buffer = T.decl_buffer((T.int64(rows), T.int64(width)), "float32", data=argument.buffer.data)
    return Argument(tensor, buffer)


def rounded_up(value: Expr, step: int) -> Expr:
    """The next multiple of ``step``."""
    if isinstance(value, int):
        return -(-value // step) * step
    return T.floordiv(value + (step - 1), T.int64(step)) * step


def across(buffer: Buffer, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Fold the ``lanes`` elements of a small buffer into one; the buffer is overwritten."""
    while lanes > 1:
        lanes //= 2
        low = emit.load(buffer, T.int64(0), lanes=lanes)
        high = emit.load(buffer, T.int64(lanes), lanes=lanes)
        emit.store(buffer, combine(low, high), T.int64(0), lanes=lanes)
    return T.bind(buffer[T.int64(0)])


def over_channels(
    channels: int, wide: int, lanes: int, step: Callable[[Expr, list[tuple[int, int]]], object]
) -> None:
    """``step(first channel, pieces)`` for each ``wide`` channels, then for what is left of them."""
    with T.serial(0, T.int64(channels // wide)) as block:
        step(block * wide, pieces(wide, lanes))
    if channels % wide:
        step(T.int64(channels - channels % wide), pieces(channels % wide, lanes))

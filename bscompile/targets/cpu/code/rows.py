"""Functions of whole rows: softmax, layer normalisation, RMS normalisation.

A row is the last axis of a tensor. It is folded in vectors, with several partial results side by
side that are combined at the end; what is left of a row behind its last vector is scalar.
Rows lie one behind the other, so a row is found by its number alone, however many axes there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cpu.code.tensors import Argument, Size, Tensor, across, function, in_rows
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Buffer, Expr
from bscompile.targets.kernels.code.vector_math import exp_of_negative

#: Rows times width below which a second thread costs more than it saves.
PARALLEL_ELEMENTS = 8192
_CHAINS = 4  # partial results side by side: an addition waits three cycles for the one before


_LEADING = "ijklmnop"


def softmax(shape: tuple[Size, ...], *, lanes: int, tasks: int) -> Any:
    """The function (x [..., width], y): softmax of each row."""
    axes = _LEADING[: len(shape) - 1] + "c"
    x, y = (Tensor(name, axes, shape) for name in "xy")

    def body(arguments: list[Argument], size: Callable[[Size], Expr]) -> None:
        row_loop = _Rows([size(s) for s in shape], lanes, _tasks(shape, tasks))
        source, target = (in_rows(a, row_loop.count, row_loop.width) for a in arguments)

        def one(r: Expr) -> None:
            top = row_loop.fold(lambda n, c: source.load(n, r=r, c=c), T.max, -math.inf)

            def power(n: int, c: Expr) -> Expr:
                value = exp_of_negative(source.load(n, r=r, c=c) - emit.splat(top, n), n)
                target.store(value, n, r=r, c=c)
                return value

            total = row_loop.fold(power, lambda a, b: a + b, 0.0)
            factor = T.bind(T.float32(1) / total)
            row_loop.each(
                lambda n, c: target.store(
                    target.load(n, r=r, c=c) * emit.splat(factor, n), n, r=r, c=c
                )
            )

        row_loop.emit(one)

    return function("softmax", [x, y], body)


def normalise(
    shape: tuple[Size, ...],
    *,
    centred: bool,
    scaled: bool,
    shifted: bool,
    epsilon: float,
    lanes: int,
    tasks: int,
) -> Any:
    """The function (x [..., width], [gamma [width],] [beta [width],] y).

    Args:
        shape: Of x and y.
        centred: Subtract the mean: layer normalisation; else RMS normalisation.
        scaled: Whether there is a gamma.
        shifted: Whether there is a beta.
        epsilon: Added to the variance.
        lanes: Elements of one vector.
        tasks: Parallel tasks.
    """
    axes, width = _LEADING[: len(shape) - 1] + "c", shape[-1]
    tensors = [Tensor("x", axes, shape)]
    tensors += [Tensor("gamma", "c", (width,))] if scaled else []
    tensors += [Tensor("beta", "c", (width,))] if shifted else []
    tensors.append(Tensor("y", axes, shape))

    def body(arguments: list[Argument], size: Callable[[Size], Expr]) -> None:
        row_loop = _Rows([size(s) for s in shape], lanes, _tasks(shape, tasks))
        ends = (arguments[0], arguments[-1])
        source, target = (in_rows(a, row_loop.count, row_loop.width) for a in ends)
        gamma = arguments[1] if scaled else None
        beta = arguments[-2] if shifted else None
        count = T.cast(T.int64(size(width)), "float32")

        def add(a: Expr, b: Expr) -> Expr:
            return a + b

        def one(r: Expr) -> None:
            mean = T.float32(0)
            if centred:
                total = row_loop.fold(lambda n, c: source.load(n, r=r, c=c), add, 0.0)
                mean = T.bind(total / count)

            def square(n: int, c: Expr) -> Expr:
                value = source.load(n, r=r, c=c)
                distance = T.bind(value - emit.splat(mean, n)) if centred else T.bind(value)
                return distance * distance

            variance = row_loop.fold(square, add, 0.0) / count
            factor = T.bind(T.float32(1) / T.sqrt(variance + T.float32(epsilon)))

            def finish(n: int, c: Expr) -> None:
                value = source.load(n, r=r, c=c)
                value = value - emit.splat(mean, n) if centred else value
                value = value * emit.splat(factor, n)
                value = value * gamma.load(n, c=c) if gamma else value
                value = value + beta.load(n, c=c) if beta else value
                target.store(value, n, r=r, c=c)

            row_loop.each(finish)

        row_loop.emit(one)

    return function("normalise", tensors, body)


def _tasks(shape: tuple[Size, ...], tasks: int) -> int:
    elements = math.prod(s if isinstance(s, int) else 128 for s in shape)
    return tasks if elements >= PARALLEL_ELEMENTS else 1


class _Rows:
    """Loops over rows and, inside one row, over vectors and the scalars behind them."""

    def __init__(self, shape: list[Expr], lanes: int, tasks: int) -> None:
        *leading, self.width = shape
        self.count = math.prod(leading)
        self.lanes, self.tasks = lanes, tasks
        if isinstance(self.width, int):
            while self.lanes > max(1, self.width):
                self.lanes //= 2
        self.partial: Buffer = None

    def emit(self, one: Callable[[Expr], None]) -> None:
        """Emit ``one(r)`` for every row."""

        def task(p: Expr) -> None:
            first, last = emit.share(T.int64(self.count), p, self.tasks)
            with T.serial(first, last) as r, emit.opaque():
                self.partial = emit.accumulators(1, _CHAINS * self.lanes)[0]
                one(r)

        emit.parallel_tasks(self.tasks, task)

    def each(self, step: Callable[[int, Expr], None]) -> None:
        """``step(elements, column)`` over the row."""
        vectors = self._vectors(1)
        with T.serial(0, vectors) as i:
            step(self.lanes, i * self.lanes)
        with T.serial(vectors * self.lanes, T.int64(self.width)) as c:
            step(1, c)

    def fold(
        self,
        element: Callable[[int, Expr], Expr],
        combine: Callable[[Expr, Expr], Expr],
        neutral: float,
    ) -> Expr:
        """All elements of the row combined into one number."""
        lanes, partial = self.lanes, self.partial
        for chain in range(_CHAINS):
            emit.store(partial, emit.constant(neutral, lanes), chain * lanes, lanes=lanes)

        def take(chain: int, column: Expr, size: int) -> None:
            so_far = emit.load(partial, chain * lanes, lanes=size)
            value = T.bind(element(size, column))
            emit.store(partial, combine(so_far, value), chain * lanes, lanes=size)

        rounds = self._vectors(_CHAINS)
        with T.serial(0, rounds) as i:
            for chain in range(_CHAINS):
                take(chain, (i * _CHAINS + chain) * lanes, lanes)
        with T.serial(rounds * _CHAINS, self._vectors(1)) as i:
            take(0, i * lanes, lanes)
        with T.serial(self._vectors(1) * lanes, T.int64(self.width)) as c:
            take(1, c, 1)
        return across(partial, _CHAINS * lanes, combine)

    def _vectors(self, group: int) -> Expr:
        return T.floordiv(T.int64(self.width), T.int64(self.lanes * group))

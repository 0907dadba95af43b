"""A recurrence as one function: all its steps in one parallel region.

In each step the kernels run as they are, on the state that the step before left; then all workers
share what follows element by element, and keep it in registers:

    for t:  a = kernel(h, weights, x[t])     barrier     h, c = elements(a, c)     barrier

So a step costs two barriers where it cost two calls with a parallel region each, a worker reads
the same part of the weights in each step, from its own cache, and the code of a step is there once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bscompile.targets.cpu.code.region import COUNTERS, Region
from bscompile.targets.cpu.code.tensors import parameters
from bscompile.targets.cpu.elementwise import emit_call
from bscompile.targets.cpu.graph import is_tensor, plain_sizes, scalar, sizes
from bscompile.targets.cpu.plan_steps import Place, Plan, Write
from bscompile.targets.cpu.repeated_steps import Ref
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Buffer, Expr
from bscompile.targets.kernels.vectors import pieces
from bscompile.targets.tir_passes import SIZED


def generate(plan: Plan, *, lanes: int, tasks: int, machine: str) -> Any:
    """The function of ``plan.inputs``, ``plan.outputs`` and, if it is parallel, a counter.

    Args:
        plan: The steps.
        lanes: Elements of one vector.
        tasks: Parallel tasks of what is done element by element.
        machine: Processor family.
    """
    tensors = [(sizes(expr), str(expr.ty.dtype)) for expr in plan.inputs.values()]
    tensors += [(plain_sizes(shape), "float32") for shape in plan.outputs.values()]
    tensors += [(COUNTERS, "int32")] if plan.parallel else []
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("recurrence")
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8})
            T.func_attr({SIZED: True})
            declared = [(f"t{i}", *tensor) for i, tensor in enumerate(tensors)]
            buffers, _ = parameters(declared)
            places = dict(zip([*plan.inputs, *plan.outputs], buffers, strict=False))
            counters = buffers[-1] if plan.parallel else None
            _Function(plan, places, lanes, tasks, Region(counters, machine)).emit()
        # The module that takes the function gives it its name.
        return builder.get().without_attr("global_symbol")


class _Function:
    """The body; ``places`` are the buffers of what the plan names."""

    def __init__(
        self, plan: Plan, places: dict[Place, Buffer], lanes: int, tasks: int, region: Region
    ) -> None:
        self.plan, self.places, self.step = plan, places, T.int64(0)
        self._lanes, self._tasks, self._region = lanes, tasks, region

    def emit(self) -> None:
        plan = self.plan
        with self._region.begin():
            self._level(-1, plan.begin)
            with T.serial(0, T.int64(len(plan.found.steps))) as step:
                self.step = self._region.run = step
                for number, level in enumerate(plan.levels):
                    for slot in level.kernels:
                        self._kernel(slot)
                    self._level(number, level.writes)

    def _kernel(self, slot: int) -> None:
        tensors = [self._tensor(ref) for ref in self.plan.found.slots[slot].args]
        y = self.places["value", slot]
        self._region.insert(self.plan.kernels[slot], [*tensors, y])

    def _tensor(self, ref: Ref) -> Any:
        place = self.plan.place(ref)
        assert place is not None  # whatever a kernel reads is stored
        buffer = self.places[place]
        if ref.kind != "stepped":
            return buffer
        at = [T.int64(0)] * (len(buffer.shape) - 1)
        return T.bind(T.address_of(buffer[(self.slice(ref), *at)]))

    def slice(self, ref: Ref) -> Expr:
        """Which slice of its source this step reads."""
        source = self.plan.found.sources[ref.at]
        return T.int64(source.first) + self.step * source.stride

    def _level(self, level: int, writes: Sequence[Write]) -> None:
        by_width: dict[int, list[Write]] = {}
        for write in writes:
            by_width.setdefault(write.width, []).append(write)
        for width, group in by_width.items():
            self._elements(level, width, group)

    def _elements(self, level: int, width: int, writes: list[Write]) -> None:
        """All workers share [rows, width] elements, which each of ``writes`` gets."""
        lanes = self._lanes
        rows = T.int64(self.places[writes[0].to[0]].shape[-2])
        whole, rest = width // lanes, width % lanes

        def some(row: Expr, column: Expr, cut: list[tuple[int, int]]) -> None:
            for at, n in cut:
                values = _Values(self, level, row, column + at, n)
                # All is read before anything is written: a new state lies where the old one did.
                results = [values.of(write.ref, width) for write in writes]
                for write, result in zip(writes, results, strict=True):
                    for place in write.to:
                        at_step = [self._result()] if place[0] == "all" else []
                        emit.store(self.places[place], result, *at_step, row, column + at, lanes=n)

        def task(number: Expr, tasks: int) -> None:
            if whole:
                with emit.loop(*emit.share(rows * whole, number, tasks)) as item, emit.opaque():
                    row = T.bind(T.floordiv(item, T.int64(whole)))
                    some(row, T.bind(T.floormod(item, T.int64(whole)) * lanes), [(0, lanes)])
            if rest:
                with emit.loop(*emit.share(rows, number, tasks)) as row, emit.opaque():
                    some(T.bind(row), T.int64(whole * lanes), pieces(rest, lanes))

        self._region.share(self._tasks, task)

    def _result(self) -> Expr:
        last = T.int64(len(self.plan.found.steps) - 1)
        return last - self.step if self.plan.backwards else self.step


class _Values:
    """The values of some elements of a row, each computed once."""

    def __init__(
        self, function: _Function, level: int, row: Expr, column: Expr, lanes: int
    ) -> None:
        self._function, self._level = function, level
        self._row, self._column, self._lanes = row, column, lanes
        self._known: dict[tuple[str, int, int], Expr] = {}

    def of(self, ref: Ref, width: int, offset: int = 0) -> Expr:
        """The value of ``ref`` for an operator of ``width`` columns, moved by some of them."""
        if ref.kind == "fixed":
            return self._fixed(ref, width, offset)
        key = (ref.kind, ref.at, offset)
        if key not in self._known:
            value = T.bind(self._made(ref, offset))
            if not self._function.plan.ready(ref, self._level):
                # Through a register that counts as memory: TVM's passes put what is bound in its
                # place, which takes seconds where functions of functions are long.
                (held,) = emit.accumulators(1, self._lanes)
                emit.store(held, value, T.int64(0), lanes=self._lanes)
                value = emit.load(held, T.int64(0), lanes=self._lanes)
            self._known[key] = value
        return self._known[key]

    def _made(self, ref: Ref, offset: int) -> Expr:
        plan = self._function.plan
        if plan.ready(ref, self._level):
            place = plan.place(ref)
            assert place is not None
            at_step = [self._function.slice(ref)] if ref.kind == "stepped" else []
            buffer, column = self._function.places[place], self._column + offset
            return emit.load(buffer, *at_step, self._row, column, lanes=self._lanes)
        slot, width = plan.found.slots[ref.at], plan.width(ref.at)
        if ref.at in plan.cuts:
            return self.of(slot.args[0], width, offset + plan.cuts[ref.at])
        tensors = [arg for arg in slot.args if arg.kind != "fixed" or is_tensor(arg.expr)]
        return emit_call(slot.call, [self.of(arg, width, offset) for arg in tensors], self._lanes)

    def _fixed(self, ref: Ref, width: int, offset: int) -> Expr:
        number = scalar(ref.expr)
        if number is not None:
            return emit.constant(number, self._lanes)
        place = self._function.plan.place(ref)
        assert place is not None
        buffer = self._function.places[place]
        where = [self._row, self._column + offset][2 - len(buffer.shape) :]
        at = [T.int64(0) if s == 1 else i for i, s in zip(where, sizes(ref.expr), strict=True)]
        if not at or (width > 1 and sizes(ref.expr)[-1] == 1):
            return emit.splat(buffer[tuple(at) or (T.int64(0),)], self._lanes)
        return emit.load(buffer, *at, lanes=self._lanes)

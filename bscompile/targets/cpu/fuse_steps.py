"""The unrolled steps of a recurrence become one call of a generated function.

What the graph reads of single steps is then a slice of all of them; where it only stacks them
again, it reads all of them at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, tirx

from bscompile.targets.cpu import plan_steps, repeated_steps
from bscompile.targets.cpu.code import steps
from bscompile.targets.cpu.code.region import COUNTERS
from bscompile.targets.cpu.graph import Graph, plain_sizes, sizes
from bscompile.targets.cpu.plan_steps import Plan
from bscompile.targets.cpu.repeated_steps import Repeated
from bscompile.targets.kernels.code.emit import PRECISION

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec


def FuseSteps(hardware: HardwareSpec) -> Any:  # noqa: N802  # a pass, named like TVM's
    """The pass that replaces every recurrence around kernels that multiply in float32."""

    def run(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        for name, function in list(module.functions_items()):
            if isinstance(function, relax.Function):
                while (done := _one(module, name, function, hardware)) is not None:
                    module, function = done
        return module

    return tvm.transform.module_pass(run, opt_level=0, name="bscompile.FuseSteps")


def _one(
    module: tvm.IRModule, name: Any, function: Any, hardware: HardwareSpec
) -> tuple[tvm.IRModule, Any] | None:
    """The module with one more recurrence replaced, None where there is none."""
    if len(function.body.blocks) != 1:
        return None
    graph, functions = Graph(function), dict(module.functions_items())

    def is_product(call: Any) -> bool:
        return PRECISION in (functions[call.args[0]].attrs or {})

    for found in repeated_steps.find(graph, functions, is_product):
        every, last = _wanted(graph, found)
        plan = plan_steps.plan(found, functions, is_product, every, last)
        if plan is None or _depends(graph, plan):
            continue
        code = steps.generate(
            plan,
            lanes=hardware.vector_bytes // 4,
            tasks=hardware.cores,
            machine=hardware.machine,
        )
        builder = relax.BlockBuilder(module)
        gv = builder.add_func(code, "recurrence")
        new = _Rebuilt(graph, function, plan, gv).function()
        builder.update_func(name, new)
        module = relax.transform.Normalize()(builder.get())
        return module, module[name]
    return None


def _wanted(graph: Graph, found: Repeated) -> tuple[set[int], set[int]]:
    """Slots that somebody outside reads: of each step, and of the last one."""
    inside = {var for step in found.steps for var in step}
    every: set[int] = set()
    last: set[int] = set()
    for step in found.steps:
        for slot, var in enumerate(step):
            readers = graph.readers.get(var, [])
            if graph.uses[var] > len(readers) or any(r not in inside for r in readers):
                (last if step is found.steps[-1] else every).add(slot)
    return every, last


def _depends(graph: Graph, plan: Plan) -> bool:
    """Whether anything that the steps read from outside is made of their results."""
    inside = {var for step in plan.found.steps for var in step}
    seen: set[Any] = set()
    left = [expr for expr in plan.inputs.values() if isinstance(expr, relax.Var)]
    while left:
        var = left.pop()
        if var in inside:
            return True
        if var not in seen:
            seen.add(var)
            if var in graph.value:
                left += list(relax.analysis.free_vars(graph.value[var]))
    return False


class _Rebuilt:
    """The bindings with a call in place of the steps, each after what it reads."""

    def __init__(self, graph: Graph, function: Any, plan: Plan, gv: Any) -> None:
        self._graph, self._old, self._plan = graph, function, plan
        self._bindings: list[Any] = []
        self._done: set[Any] = set()
        self._all: dict[int, Any] = {}
        self._index = {
            var: (slot, number)
            for number, step in enumerate(plan.found.steps)
            for slot, var in enumerate(step)
        }
        self._values = {**graph.value, **self._call(gv)}

    def function(self) -> Any:
        """The whole function."""
        block = self._old.body.blocks[0]
        for binding in block.bindings:
            if binding.var not in self._index:
                self._emit(binding.var)
        old = self._old
        body = relax.SeqExpr([type(block)(self._bindings)], old.body.body)
        return relax.Function(old.params, body, old.ret_ty, old.is_pure, old.attrs)

    def _emit(self, var: Any) -> None:
        if var in self._done or var not in self._values:
            return
        self._done.add(var)
        value = self._restacked(self._values[var])
        for needed in relax.analysis.free_vars(value):
            self._emit(needed)
        self._bindings.append(relax.VarBinding(var, value))

    # ------------------------------------------------------------ the results

    def _call(self, gv: Any) -> dict[Any, Any]:
        """Variable -> value for the call and all that is read of it."""
        plan, count = self._plan, len(self._plan.found.steps)
        types = [relax.TensorType(list(shape), "float32") for shape in plan.outputs.values()]
        if plan.parallel:
            types.append(relax.TensorType(list(COUNTERS), "int32"))
        value = relax.call_tir(gv, list(plan.inputs.values()), types)
        whole = relax.DataflowVar("recurrence", value.ty)
        values = {whole: value}
        items = {}
        for place, (key, ty) in enumerate(zip(plan.outputs, types, strict=False)):
            items[key] = relax.DataflowVar(f"{key[0]}_{key[1]}", ty)
            values[items[key]] = relax.TupleGetItem(whole, place)
        for slot in sorted(plan.every):
            every = self._all[slot] = items["all", slot]
            parts = relax.op.split(every, count, 0)
            one = relax.TensorType([tirx.IntImm("int64", 1), *plan.shape(slot)], "float32")
            split = relax.DataflowVar("steps", relax.TupleType([one] * count))
            values[split] = parts
            for number, step in enumerate(plan.found.steps):
                item = relax.DataflowVar("step", one)
                values[item] = relax.TupleGetItem(split, self._row(number))
                values[step[slot]] = relax.op.squeeze(item, [0])
        for slot in sorted(plan.last):
            key = ("current" if slot in plan.found.initial else "value", slot)
            values[plan.found.steps[-1][slot]] = items[key]
        return values

    def _row(self, number: int) -> int:
        """Where the value of a step lies among those of all steps."""
        return len(self._plan.found.steps) - 1 - number if self._plan.backwards else number

    def _restacked(self, value: Any) -> Any:
        """A concatenation of single steps as one of whole stretches of them."""
        call = isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.Op)
        if not call or value.op.name != "relax.concat" or int(value.attrs.axis or 0) != 0:
            return value
        parts = list(value.args[0].fields) if isinstance(value.args[0], relax.Tuple) else []
        merged: list[Any] = []
        for part in parts:
            found = self._stacked(part)
            if found and merged and merged[-1][1] and _follows(merged[-1][1], found):
                merged[-1] = (None, (found[0], merged[-1][1][1], found[1]))
            else:
                merged.append((part, (found[0], found[1], found[1]) if found else None))
        if len(merged) == len(parts):
            return value
        pieces = [part if part is not None else self._stretch(*run) for part, run in merged]
        return pieces[0] if len(pieces) == 1 else relax.op.concat(pieces, 0)

    def _stacked(self, part: Any) -> tuple[int, int] | None:
        """(slot, row of all steps) where ``part`` is a step's value with one more axis in front."""
        call = self._graph.call(part, "relax.expand_dims", "relax.reshape")
        source = None if call is None else call.args[0]
        if source not in self._index:
            return None
        slot, number = self._index[source]
        if slot not in self._all or sizes(part) != (1, *plain_sizes(self._plan.shape(slot))):
            return None
        return slot, self._row(number)

    def _stretch(self, slot: int, first: int, last: int) -> Any:
        every = self._all[slot]
        if (first, last) == (0, len(self._plan.found.steps) - 1):
            return every
        return relax.op.strided_slice(every, [0], [first], [last + 1])


def _follows(run: tuple[int, int, int], found: tuple[int, int]) -> bool:
    return run[0] == found[0] and run[2] + 1 == found[1]

"""The steps of a recurrence in an unrolled graph: what repeats, and how one hands on to the next.

A step is found from two neighbours, by walking from what two calls of the same kernel read down
to where they differ no more:

* the same value in both is *fixed*, such as a weight;
* two slices of one tensor are *stepped*: step t reads slice first + t · stride;
* what the later one reads of the earlier one's own values is *carried*;
* everything else must be the same operator in both, and is a *slot* of the step.

Other neighbours then have to repeat that. A first step that is irregular, since its state is zero
and parts of it were computed while compiling, stays outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, sym, tirx

from bscompile.targets.cpu.graph import Graph, sizes

MIN_STEPS = 3
_MAX_SLOTS = 200
_MAX_TRIALS = 3


@dataclass(frozen=True)
class Ref:
    """What a slot reads.

    Attributes:
        kind: ``slot``, ``carried``, ``stepped`` or ``fixed``.
        at: Number of the slot, or of the source that is stepped through.
        expr: What is fixed.
    """

    kind: str
    at: int = -1
    expr: Any = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor [slices, ...] of which each step reads one slice."""

    expr: Any
    first: int
    stride: int


@dataclass(frozen=True, eq=False)
class Slot:
    """One operator of a step: the first step's call and what it reads."""

    call: Any
    ty: Any
    args: tuple[Ref, ...]


@dataclass(eq=False)
class Repeated:
    """Steps that do the same.

    Attributes:
        slots: What a step computes, each after those that it reads.
        sources: What is stepped through.
        initial: Slot -> what the first step reads where later ones read that slot of the one
            before.
        steps: For each step the variable of each slot.
    """

    slots: list[Slot] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    initial: dict[int, Any] = field(default_factory=dict)
    steps: list[list[Any]] = field(default_factory=list)


def arguments(call: Any) -> list[Any]:
    """What a call reads, the tensors of a call_tir one by one."""
    if call.op.name != "relax.call_tir":
        return list(call.args)
    tensors = call.args[1]
    return list(tensors.fields) if isinstance(tensors, relax.Tuple) else [tensors]


def offsets(function: Any) -> tuple[int, ...] | None:
    """(a, b, ..) where a PrimFunc is y[i, j, ..] = x[i + a, j + b, ..] and nothing else."""
    body = function.body.block.body if isinstance(function.body, s_tir.SBlockRealize) else None
    while isinstance(body, tirx.For):
        body = body.body
    if not isinstance(body, s_tir.SBlockRealize):
        return None
    store = body.block.body
    if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tvm.ir.TensorLoad):
        return None
    axes = [axis.var for axis in body.block.iter_vars]
    read = list(store.value.indices)
    if len(read) != len(axes) or not all(map(_same, store.indices, axes)):
        return None
    moved = [sym.Analyzer().simplify(at - axis) for at, axis in zip(read, axes, strict=True)]
    if not all(isinstance(m, tirx.IntImm) for m in moved):
        return None
    return tuple(int(m.value) for m in moved)


def find(
    graph: Graph, functions: dict[Any, Any], is_product: Callable[[Any], bool]
) -> Iterator[Repeated]:
    """Every recurrence around a kernel for which ``is_product(call)`` holds.

    They may overlap: whoever replaces one looks again.

    Args:
        graph: The function's bindings.
        functions: Global variable -> PrimFunc.
        is_product: Whether a call_tir is a kernel of a template.
    """
    groups: dict[Any, list[Any]] = {}
    for var in graph.value:
        call = graph.call(var, "relax.call_tir")
        if call is not None and is_product(call):
            _, weight, *_ = arguments(call)
            groups.setdefault((call.args[0], weight), []).append(var)
    slices = _Slices(graph, functions)
    for calls in groups.values():
        states = [arguments(graph.value[var])[0] for var in calls]
        for earlier, later in islice(pairwise(states), _MAX_TRIALS):
            found = _Pair(graph, slices).step(later, earlier)
            if found is not None and _extend(graph, slices, found) >= MIN_STEPS:
                yield found
                break


class _Slices:
    """Which variables are slice i of a tensor that is cut along its first axis."""

    def __init__(self, graph: Graph, functions: dict[Any, Any]) -> None:
        self._graph, self._functions = graph, functions
        self._offsets: dict[Any, tuple[int, ...] | None] = {}
        self.of: dict[Any, tuple[Any, int]] = {}
        self.at: dict[tuple[Any, int], Any] = {}
        for var in graph.value:
            found = self._slice(var)
            if found is not None:
                self.of[var] = found
                self.at.setdefault(found, var)

    def _slice(self, var: Any) -> tuple[Any, int] | None:
        call = self._graph.call(var, "relax.squeeze", "relax.reshape")
        if call is None or sizes(call.args[0])[:1] != (1,):
            return None
        source, index = self._item(call.args[0]) or self._cut(call.args[0]) or (None, 0)
        if not isinstance(source, relax.Var) or sizes(source)[1:] != sizes(var):
            return None
        return source, index

    def _item(self, var: Any) -> tuple[Any, int] | None:
        """(x, i) where ``var`` is part i of x, split along its first axis."""
        item = self._graph.value.get(var)
        if not isinstance(item, relax.TupleGetItem):
            return None
        split = self._graph.call(item.tuple_value, "relax.split")
        if split is None or int(split.attrs.axis) != 0:
            return None
        return split.args[0], int(item.index)

    def _cut(self, var: Any) -> tuple[Any, int] | None:
        """(x, i) where ``var`` is x[i : i + 1]."""
        call = self._graph.call(var, "relax.call_tir")
        if call is None or len(arguments(call)) != 1:
            return None
        function = call.args[0]
        if function not in self._offsets:
            self._offsets[function] = offsets(self._functions[function])
        moved = self._offsets[function]
        return None if not moved or any(moved[1:]) else (arguments(call)[0], moved[0])


class _DifferError(Exception):
    """Two steps do not do the same."""


class _Pair:
    """The walk down two neighbouring steps."""

    def __init__(self, graph: Graph, slices: _Slices) -> None:
        self._graph, self._slices = graph, slices
        self._numbers: dict[Any, int] = {}  # by the later variable, in the order of visits
        self._earlier: dict[Any, int] = {}
        self._slots: dict[int, Slot] = {}  # in the order in which they can be computed
        self._sources: list[Source] = []
        self._initial: dict[int, Any] = {}

    def step(self, later: Any, earlier: Any) -> Repeated | None:
        """The step that computes ``earlier``; None where there is none."""
        try:
            root = self._refer(later, earlier)
        except _DifferError:
            return None
        both = self._numbers.keys() & self._earlier.keys()
        if root.kind != "slot" or not self._initial or both:
            return None
        places = {number: place for place, number in enumerate(self._slots)}

        def renamed(ref: Ref) -> Ref:
            own = ref.kind in ("slot", "carried")
            return Ref(ref.kind, places[ref.at], None) if own else ref

        variables = {number: var for var, number in self._earlier.items()}
        slots = [Slot(s.call, s.ty, tuple(map(renamed, s.args))) for s in self._slots.values()]
        initial = {places[number]: expr for number, expr in self._initial.items()}
        return Repeated(slots, self._sources, initial, [[variables[n] for n in self._slots]])

    def _refer(self, later: Any, earlier: Any) -> Ref:
        if later.same_as(earlier) or _equal_constants(later, earlier):
            return Ref("fixed", expr=later)
        if later in self._earlier:
            number = self._earlier[later]
            if not self._initial.setdefault(number, earlier).same_as(earlier):
                raise _DifferError
            return Ref("carried", number)
        if later in self._numbers:
            number = self._numbers[later]
            if self._earlier.get(earlier) != number:
                raise _DifferError
            return Ref("slot", number)
        if later in self._slices.of and earlier in self._slices.of:
            return self._stepped(self._slices.of[later], self._slices.of[earlier])
        return self._slot(later, earlier)

    def _stepped(self, later: tuple[Any, int], earlier: tuple[Any, int]) -> Ref:
        if not later[0].same_as(earlier[0]):
            raise _DifferError
        source, first, stride = earlier[0], earlier[1], later[1] - earlier[1]
        for place, known in enumerate(self._sources):
            if known.expr.same_as(source) and (known.first, known.stride) == (first, stride):
                return Ref("stepped", place)
        self._sources.append(Source(source, first, stride))
        return Ref("stepped", len(self._sources) - 1)

    def _slot(self, later: Any, earlier: Any) -> Ref:
        calls = [self._graph.value.get(v) for v in (later, earlier)]
        number = len(self._numbers)
        if earlier in self._earlier or not _same_operator(*calls) or number >= _MAX_SLOTS:
            raise _DifferError
        self._numbers[later] = self._earlier[earlier] = number
        pairs = zip(*map(arguments, calls), strict=True)
        args = tuple(self._refer(a, b) for a, b in pairs)
        self._slots[number] = Slot(calls[1], earlier.ty, args)
        return Ref("slot", number)


def _extend(graph: Graph, slices: _Slices, found: Repeated) -> int:
    """Add every further step that repeats the first; how many there are."""
    while (step := _next(graph, slices, found)) is not None:
        found.steps.append(step)
    return len(found.steps)


def _next(graph: Graph, slices: _Slices, found: Repeated) -> list[Any] | None:
    before, count = found.steps[-1], len(found.steps)
    step: list[Any] = []

    def value(ref: Ref) -> Any:
        if ref.kind == "fixed":
            return ref.expr
        if ref.kind == "stepped":
            source = found.sources[ref.at]
            return slices.at.get((source.expr, source.first + count * source.stride))
        return step[ref.at] if ref.kind == "slot" else before[ref.at]

    for slot in found.slots:
        args = [value(ref) for ref in slot.args]
        moving = [a for a, ref in zip(args, slot.args, strict=True) if ref.kind != "fixed"]
        if not moving or any(arg is None for arg in moving):
            return None
        for var in graph.readers.get(moving[0], []):
            call = graph.value[var]
            if _same_operator(call, slot.call) and all(map(_same, arguments(call), args)):
                step.append(var)
                break
        else:
            return None
    return step


def _same(one: Any, other: Any) -> bool:
    return bool(one.same_as(other)) or _equal_constants(one, other)


def _equal_constants(one: Any, other: Any) -> bool:
    """Whether both are the same number, shape or constant; variables are not compared."""
    if isinstance(one, relax.Var) or isinstance(other, relax.Var):
        return False
    return type(one) is type(other) and bool(tvm_ffi.structural_equal(one, other))


def _same_operator(one: Any, other: Any) -> bool:
    calls = all(isinstance(c, tvm.ir.Call) and isinstance(c.op, tvm.ir.Op) for c in (one, other))
    if not calls or not one.op.same_as(other.op):
        return False
    if one.op.name == "relax.call_tir" and not one.args[0].same_as(other.args[0]):
        return False
    if len(arguments(one)) != len(arguments(other)):
        return False
    return bool(tvm_ffi.structural_equal(one.attrs, other.attrs))

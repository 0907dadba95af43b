"""How the steps of a recurrence run: what is stored where, and in which order.

A step is cut into levels. In each, kernels run on what is there already, then everything that
follows from them element by element is computed and stored; all workers meet in between. A state
is written where the old one lies, unless somebody would still read the old one: then it goes into
a place of its own and is copied when the step ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tvm import relax

from bscompile.targets.cpu.code import region
from bscompile.targets.cpu.elementwise import OPERATORS
from bscompile.targets.cpu.graph import is_float32, is_tensor, plain_sizes, scalar, sizes
from bscompile.targets.cpu.repeated_steps import Ref, Repeated, offsets

#: Names a tensor: ``fixed``, ``source``, ``initial`` are read; ``value`` is what a slot is now,
#: ``current`` what the next step reads of it, ``all`` what it was in each step.
Place = tuple[str, int]


@dataclass(frozen=True)
class Write:
    """What is computed element by element and where it is stored."""

    ref: Ref
    width: int
    to: tuple[Place, ...]


@dataclass(frozen=True)
class Level:
    """Kernels, by slot, and what follows from them."""

    kernels: tuple[int, ...]
    writes: tuple[Write, ...]


@dataclass(eq=False)
class Plan:
    """The order of one step and the tensors of all.

    Attributes:
        found: The steps.
        kernels: Slot -> the PrimFunc of a kernel.
        cuts: Slot -> first column, where a slot is columns of what it reads.
        every: Slots of which every step's value is wanted.
        last: Slots of which the last one's is.
        rows: Leading size of every slot.
    """

    found: Repeated
    kernels: dict[int, Any]
    cuts: dict[int, int]
    every: set[int]
    last: set[int]
    rows: Any = None
    fixed: list[Any] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    stored: dict[int, int] = field(default_factory=dict)  # slot -> level
    in_place: set[int] = field(default_factory=set)

    @property
    def parallel(self) -> bool:
        """Whether any of the kernels is worth more than one worker."""
        return any(region.has_loop(kernel.body) for kernel in self.kernels.values())

    @property
    def backwards(self) -> bool:
        """Whether results are stored in the order of what is stepped through from its end."""
        return any(source.stride < 0 for source in self.found.sources)

    def place(self, ref: Ref) -> Place | None:
        """Where the value of ``ref`` lies when it is there; None for what is not stored."""
        if ref.kind == "carried":
            return "current", ref.at
        if ref.kind == "slot":
            if ref.at not in self.stored:
                return None
            return ("current" if ref.at in self.in_place else "value"), ref.at
        if ref.kind == "fixed":
            return "fixed", next(i for i, e in enumerate(self.fixed) if e.same_as(ref.expr))
        return ref.kind, ref.at

    def ready(self, ref: Ref, level: int) -> bool:
        """Whether those who write at ``level`` can load the value of ``ref``."""
        if ref.kind != "slot":
            return True
        at = self.stored.get(ref.at, level + 1)
        return at <= level if ref.at in self.kernels else at < level

    @property
    def begin(self) -> list[Write]:
        """The first states."""
        return [
            Write(Ref("initial", slot), self.width(slot), (("current", slot),))
            for slot in self.found.initial
        ]

    @property
    def inputs(self) -> dict[Place, Any]:
        """Place -> the tensor that the function reads there."""
        found = {("fixed", i): expr for i, expr in enumerate(self.fixed)}
        found |= {("stepped", i): source.expr for i, source in enumerate(self.found.sources)}
        return found | {("initial", s): expr for s, expr in self.found.initial.items()}

    @property
    def outputs(self) -> dict[Place, tuple[Any, ...]]:
        """Place -> the sizes of the tensor that the function writes there."""
        places = [("value", s) for s in self.stored if s not in self.in_place]
        places += [("current", s) for s in self.found.initial]
        found = {place: self.shape(place[1]) for place in places}
        count = len(self.found.steps)
        return found | {("all", s): (count, *self.shape(s)) for s in sorted(self.every)}

    def shape(self, slot: int) -> tuple[Any, ...]:
        """(rows, width) of a slot, as sizes of Relax."""
        return tuple(self.found.slots[slot].ty.shape.values)

    def width(self, slot: int) -> int:
        """Columns of a slot."""
        return int(self.shape(slot)[1].value)


def plan(
    found: Repeated, functions: dict[Any, Any], is_product: Any, every: set[int], last: set[int]
) -> Plan | None:
    """The plan of some steps; None where there is no code for a part of them.

    Args:
        found: The steps.
        functions: Global variable -> PrimFunc.
        is_product: Whether a call_tir is a kernel of a template.
        every: Slots of which every step's value is wanted.
        last: Slots of which the last one's is.
    """
    made = Plan(found, {}, {}, every, last)
    for place, slot in enumerate(found.slots):
        if not _matrix(slot.ty):
            return None
        if slot.call.op.name == "relax.call_tir":
            function = functions[slot.call.args[0]]
            if is_product(slot.call):
                made.kernels[place] = function
            elif (first := offsets(function)) and first[0] == 0:
                made.cuts[place] = first[1]
            else:
                return None
        elif slot.call.op.name not in OPERATORS:
            return None
    made.rows = sizes(found.slots[0])[0]
    if not isinstance(made.rows, int):
        return None  # with an open number of rows, odd ones came out wrong: see docs/cpu.md
    if not all(_fits(made, place) for place in range(len(found.slots))):
        return None
    for place, initial in found.initial.items():
        if not is_float32(initial) or sizes(initial) != sizes(found.slots[place]):
            return None
    for slot in found.slots:
        for ref in slot.args:
            if ref.kind != "fixed" or not is_tensor(ref.expr) or scalar(ref.expr) is not None:
                continue
            if not any(expr.same_as(ref.expr) for expr in made.fixed):
                made.fixed.append(ref.expr)
    _order(made)
    return made


def _matrix(ty: Any) -> bool:
    known = isinstance(ty, relax.TensorType) and ty.shape is not None and ty.ndim == 2
    return known and str(ty.dtype) == "float32" and isinstance(_plain(ty)[1], int)


def _plain(ty: Any) -> tuple[Any, ...]:
    return plain_sizes(ty.shape.values)


def _fits(made: Plan, place: int) -> bool:
    """Whether a slot's operands have the sizes that the code is made for."""
    slot = made.found.slots[place]
    if sizes(slot)[0] != made.rows:
        return False
    kernel = made.kernels.get(place)
    if kernel is not None:
        x = _type_of(made, slot.args[0])
        return region.fits(kernel) and str(x.dtype) == "float32"
    for ref in slot.args:
        ty = _type_of(made, ref)
        if not isinstance(ty, relax.TensorType):
            continue  # a number, such as the limits of a clip
        if ty.shape is None or str(ty.dtype) != "float32" or ty.ndim > 2:
            return False
        own = _plain(ty)
        width = sizes(slot)[1]
        if ref.kind == "fixed":
            broadcast = zip(own[::-1], (width, made.rows), strict=False)
            if any(size not in (1, wanted) for size, wanted in broadcast):
                return False
        elif own[0] != made.rows or (own[1] != width and place not in made.cuts):
            return False
    return True


def _type_of(made: Plan, ref: Ref) -> Any:
    """The type of what a slot reads; of a source that of one slice."""
    if ref.kind == "fixed":
        return ref.expr.ty
    if ref.kind == "stepped":
        ty = made.found.sources[ref.at].expr.ty
        return relax.TensorType(list(ty.shape.values)[1:], ty.dtype)
    return made.found.slots[ref.at].ty


# ------------------------------------------------------------ the order


def _order(made: Plan) -> None:
    slots = made.found.slots
    level: list[int] = []
    for place, slot in enumerate(slots):
        before = [level[ref.at] for ref in slot.args if ref.kind == "slot"]
        made_before = max(before, default=-1) + 1
        level.append(made_before if place in made.kernels else max(before, default=0))
    read = {r.at for p in made.kernels for r in slots[p].args if r.kind == "slot"}
    wanted = set(made.kernels) | read | set(made.found.initial) | made.every | made.last
    made.stored = {place: level[place] for place in sorted(wanted)}
    made.in_place = {place for place in made.found.initial if _may_overwrite(made, place)}
    count = max(level) + 1
    late = [p for p in made.stored if p not in made.in_place and _copies(made, p)]
    for number in range(count):
        kernels = tuple(p for p in made.kernels if level[p] == number)
        writes = [
            Write(Ref("slot", p), made.width(p), _targets(made, p))
            for p, at in made.stored.items()
            if at == number and p not in made.kernels
        ]
        made.levels.append(Level(kernels, tuple(writes)))
    if late:
        copies = [Write(Ref("slot", p), made.width(p), _copies(made, p)) for p in late]
        made.levels.append(Level((), tuple(copies)))


def _targets(made: Plan, place: int) -> tuple[Place, ...]:
    """Where a slot goes that is computed element by element."""
    if place not in made.in_place:
        return (("value", place),)
    return (("current", place), *((("all", place),) if place in made.every else ()))


def _copies(made: Plan, place: int) -> tuple[Place, ...]:
    """Where the value of a slot goes when the step ends."""
    names = [("current", place in made.found.initial), ("all", place in made.every)]
    return tuple((name, place) for name, there in names if there)


def _may_overwrite(made: Plan, place: int) -> bool:
    """Whether nobody reads the old state of a slot any more where the new one is written."""
    if place in made.kernels:
        return False
    own = made.stored[place]
    for kernel in made.kernels:
        for ref in made.found.slots[kernel].args:
            if ref == Ref("carried", place) and made.stored[kernel] > own:
                return False
    for writer, level in made.stored.items():
        if writer in made.kernels:
            continue
        for ref, offset in _leaves(made, writer, level, 0):
            if ref == Ref("carried", place):
                same = offset == 0 and made.width(writer) == made.width(place)
                if level > own or (level == own and not same):
                    return False
    return True


def _leaves(made: Plan, place: int, level: int, offset: int) -> Iterator[tuple[Ref, int]]:
    """What is loaded to compute a slot at a level, with the columns that it is moved by."""
    offset += made.cuts.get(place, 0)
    for ref in made.found.slots[place].args:
        if made.ready(ref, level):
            yield ref, offset
        else:
            yield from _leaves(made, ref.at, level, offset)

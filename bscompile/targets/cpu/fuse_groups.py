"""Instance and group normalisation, with what follows, becomes calls of generated functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bscompile.targets.cpu import elementwise
from bscompile.targets.cpu.code import groups
from bscompile.targets.cpu.graph import Graph, Replacement, is_float32, replacing_pass, sizes

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

#: Elements below which a second thread costs more than it saves.
PARALLEL_ELEMENTS = 8192
_MAX_RANK = 6


def FuseGroups(hardware: HardwareSpec) -> Any:  # noqa: N802  # a pass, named like TVM's
    """The pass that replaces normalisations of float32 images with channels last."""

    def find(graph: Graph, var: Any) -> Replacement | None:
        after = elementwise.region(graph, var, lambda v: _normalised(graph, v) is not None)
        found = None if after is None else _normalised(graph, after[0])
        if after is None or found is None:
            return None
        shape = sizes(found.x)
        elements = math.prod(s if isinstance(s, int) else 128 for s in shape)
        function = groups.normalise(
            shape,
            found.groups,
            found.epsilon,
            [step for step, _ in found.steps],
            after[1],
            lanes=hardware.vector_bytes // 4,
            tasks=hardware.cores if elements >= PARALLEL_ELEMENTS else 1,
        )
        vectors = [vector for _, vector in found.steps]
        return Replacement("normalise_groups", function, (found.x, *vectors))

    return replacing_pass("bscompile.FuseGroups", find)


@dataclass(frozen=True, eq=False)
class _Norm:
    """A normalisation of x and the vectors [c] that are multiplied and added in turn."""

    x: Any
    groups: int
    epsilon: float
    steps: tuple[tuple[str, Any], ...]


def _normalised(graph: Graph, var: Any) -> _Norm | None:
    """What ``var`` is: a normalisation, or one scaled or shifted by channel."""
    call = graph.call(var, "relax.nn.group_norm")
    if call is not None:
        x, gamma, beta = call.args
        axis, rank, attrs = int(call.attrs.channel_axis), x.ty.ndim, call.attrs
        over = sorted(int(a) % rank for a in attrs.axes)
        last = axis in (-1, rank - 1) and over == list(range(1, rank - 1))
        if not last or rank > _MAX_RANK or not is_float32(x):
            return None
        steps = (("multiply", gamma), ("add", beta))
        return _Norm(x, int(attrs.num_groups), float(attrs.epsilon), steps)
    call = graph.call(var, "relax.multiply", "relax.add")
    if call is None:
        return None
    for inner, vector in (tuple(call.args), tuple(call.args)[::-1]):
        if vector.ty.ndim != 1 or graph.only_reader(inner) is None:
            continue
        found = _normalised(graph, inner)
        if found is not None and sizes(vector) == sizes(found.x)[-1:]:
            step = call.op.name.removeprefix("relax.")
            return _Norm(found.x, found.groups, found.epsilon, (*found.steps, (step, vector)))
    return None

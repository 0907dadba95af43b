"""Where the result of a layer is cut into parts, and the way to a part without the others.

    y [.., n] -> Reshape [.., 3, h, d] -> Transpose [3, .., h, s, d] -> Gather 0, Gather 1, Gather 2

Reshapes that cut the last axis into several, transposes, and axes of length one that come and go
lead to a value of which every reader takes a part along one axis (part_readers.py). Feature f of y
lies there at (f // stride) % length, so a part holds those features whose place is in it. Its own
way is the same nodes with that axis as long as the part is, or without it where the reader
drops it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.passes.graph import add_initializer, constant, is_op, only_reader
from bscompile.passes.part_readers import readers_of

Index = npt.NDArray[np.int64]
Dims = list[int | ir.SymbolicDim]


@dataclass(frozen=True)
class _Axis:
    """An axis that counts features: (f // stride) % length; stride 0 where it counts others."""

    stride: int = 0
    length: int = 0


@dataclass(frozen=True, eq=False)
class _Step:
    """A node on the way, and the place of the axis of the parts before and after it.

    Attributes:
        node: Reshape, Transpose, Squeeze or Unsqueeze.
        before: None where that axis is still a factor of the last one.
        after: Likewise.
        first: The first axis after it that counts features.
    """

    node: ir.Node
    before: int | None
    after: int | None
    first: int


@dataclass(frozen=True, eq=False)
class Part:
    """What one reader takes.

    Attributes:
        nodes: The reader, and the Squeeze after it where that drops the axis.
        value: The result.
        rows: The features of y that it holds, in their order in the new y.
        count: Its length along the axis; 0 where the axis is dropped.
    """

    nodes: tuple[ir.Node, ...]
    value: ir.Value
    rows: Index
    count: int


@dataclass(frozen=True, eq=False)
class Parts:
    """How a layer's result is read.

    Attributes:
        steps: The nodes between the layer and the readers.
        parts: All that is read of it, no feature twice.
    """

    steps: tuple[_Step, ...]
    parts: tuple[Part, ...]

    @property
    def nodes(self) -> list[ir.Node]:
        """All nodes that the parts replace."""
        readers = dict.fromkeys(node for part in self.parts for node in part.nodes)
        return [*(step.node for step in self.steps), *readers]

    def lead(self, graph: ir.Graph, value: ir.Value, part: Part) -> ir.Value:
        """The shape of a part for ``value`` [.., its features]; the nodes stand beside the old."""
        for step in self.steps:
            value = _repeat(graph, step, value, part)
        value.shape = part.value.shape
        return value


def find_parts(y: ir.Value) -> Parts | None:
    """How the features of y are read in parts; None where they are not."""
    if y.shape is None or not len(y.shape) or not isinstance(y.shape[-1], int):
        return None
    size = y.shape[-1]
    start = [*[_Axis()] * (len(y.shape) - 1), _Axis(1, size)]
    way: list[tuple[ir.Node, list[_Axis]]] = []
    axes, value = start, y
    while (node := only_reader(value)) is not None and node.inputs[0] is value:
        moved = _moved(node, axes, size)
        if moved is None:
            break
        way.append((node, moved))
        axes, value = moved, node.outputs[0]
    read = readers_of(value)
    if read is None or not axes[read[0]].stride:
        return None
    cut, readers = axes[read[0]], read[1]
    if cut in start and any(reader.drops for reader in readers):
        return None
    rows = np.arange(size).reshape(-1, cut.length, cut.stride)
    parts = [
        Part(r.nodes, r.value, rows[:, r.places].reshape(-1), 0 if r.drops else len(r.places))
        for r in readers
    ]
    taken = np.concatenate([part.rows for part in parts])
    if len(parts) < 2 or len(np.unique(taken)) != len(taken):
        return None
    places = [a.index(cut) if cut in a else None for a in (start, *(a for _, a in way))]
    steps = [
        _Step(node, places[number], places[number + 1], _first_feature(after))
        for number, (node, after) in enumerate(way)
    ]
    return Parts(tuple(steps), tuple(parts))


def _first_feature(axes: list[_Axis]) -> int:
    return next(place for place, axis in enumerate(axes) if axis.stride)


def _moved(node: ir.Node, axes: list[_Axis], size: int) -> list[_Axis] | None:
    """The axes of a node's result, None where it does something else than move them."""
    y = node.outputs[0]
    if y.shape is None:
        return None
    if is_op(node, "Transpose"):
        return [axes[a] for a in _perm(node, len(axes))]
    if is_op(node, "Squeeze", "Unsqueeze"):
        return _with_ones(node, axes)
    strides = [axis.stride for axis in axes[_first_feature(axes) :]]
    if not is_op(node, "Reshape") or 0 in strides or strides != sorted(strides, reverse=True):
        return None  # it would cut what a Transpose has mixed
    return _factors(list(y.shape), size)


def _perm(node: ir.Node, rank: int) -> list[int]:
    return list(node.attributes.get_ints("perm", range(rank)[::-1]))


def _factors(shape: Dims, size: int) -> list[_Axis] | None:
    """The axes of [.., a, b, c] with a b c = size."""
    axes: list[_Axis] = []
    stride = 1
    for length in reversed(shape):
        if stride == size:
            break
        if not isinstance(length, int) or length < 1 or size % (stride * length):
            return None
        axes.insert(0, _Axis(stride, length))
        stride *= length
    return [_Axis()] * (len(shape) - len(axes)) + axes if stride == size else None


def _with_ones(node: ir.Node, axes: list[_Axis]) -> list[_Axis] | None:
    """The axes after a Squeeze or Unsqueeze."""
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None:
        return None
    if is_op(node, "Squeeze"):
        gone = {int(a) % len(axes) for a in given.reshape(-1)}
        return [a for place, a in enumerate(axes) if place not in gone]
    rank = len(axes) + given.size
    new = {int(a) % rank for a in given.reshape(-1)}
    rest = iter(axes)
    return [_Axis() if place in new else next(rest) for place in range(rank)]


def _repeat(graph: ir.Graph, step: _Step, x: ir.Value, part: Part) -> ir.Value:
    """A node of the way for one part: its axis as long as the part is, or without it."""
    old, y = step.node, step.node.outputs[0]
    assert y.shape is not None
    dims: Dims = list(y.shape)
    at = len(dims) - 1 if step.after is None else step.after
    gone = step.after is not None and not part.count
    dims[at : at + 1] = [] if gone else [len(part.rows) if step.after is None else part.count]
    inputs: list[ir.Value | None] = [x, *old.inputs[1:]]
    attributes: list[ir.Attr] = []
    op_type = old.op_type
    perm = _perm(old, len(y.shape)) if is_op(old, "Transpose") else []
    if gone and perm:
        perm = [a - (a > perm[at]) for a in perm if a != perm[at]]
    if _is_known(dims) and _keeps_order(perm, dims):
        before = x.producer()
        if before is not None and is_op(before, "Reshape") and not x.uses():
            source = before.inputs[0]  # one after the other: the last one alone
            assert source is not None
            x = source
            graph.remove(before, safe=True)
        if x.shape == ir.Shape(dims):
            return x
        op_type, inputs = "Reshape", [x, _target(graph, step, dims)]
    elif perm:
        attributes = [ir.AttrInt64s("perm", perm)]
    elif is_op(old, "Reshape"):
        inputs[1] = _target(graph, step, dims)
    elif gone:
        axes, squeezes = constant(old.inputs[1]), is_op(old, "Squeeze")
        place = step.before if squeezes else step.after
        assert axes is not None
        assert place is not None
        axes = axes.reshape(-1) % (len(y.shape) + squeezes * axes.size)
        inputs[1] = add_initializer(graph, f"{old.name}.axes", axes - (axes > place))
    made = ir.Node("", op_type, inputs, attributes, name=old.name)
    result = made.outputs[0]
    result.type, result.shape = y.type, ir.Shape(dims)
    graph.insert_before(old, made)
    return result


def _is_known(dims: Dims) -> bool:
    """Whether constants can ask for this shape: one size at most follows from the others."""
    return 0 not in dims and sum(not isinstance(dim, int) for dim in dims) < 2


def _keeps_order(perm: list[int], dims: Dims) -> bool:
    """Whether a Transpose to ``dims`` leaves all entries in their order: it only moves ones."""
    moved = [a for a, dim in zip(perm, dims, strict=False) if dim != 1]
    return moved == sorted(moved)


def _target(graph: ir.Graph, step: _Step, dims: Dims) -> ir.Value:
    """What a Reshape asks for when it is to give ``dims``."""
    name = f"{step.node.name or 'reshape'}.shape"
    sizes = [dim if isinstance(dim, int) else -1 for dim in dims]
    if _is_known(dims):
        return add_initializer(graph, name, np.array(sizes, np.int64))
    asked = step.node.inputs[1]
    assert asked is not None
    known, ours = constant(asked), np.array(sizes[step.first :], np.int64)
    if known is not None:
        return add_initializer(graph, name, np.concatenate([known[: step.first], ours]))
    ends = [add_initializer(graph, f"{name}.{k}", np.array([k])) for k in (0, step.first)]
    lead = ir.Node("", "Slice", [asked, *ends])
    rest = add_initializer(graph, f"{name}.features", ours)
    whole = ir.Node("", "Concat", [lead.outputs[0], rest], [ir.AttrInt64("axis", 0)])
    for made, length in ((lead, step.first), (whole, len(sizes))):
        made.outputs[0].dtype, made.outputs[0].shape = ir.DataType.INT64, ir.Shape([length])
    graph.insert_before(step.node, [lead, whole])
    return whole.outputs[0]

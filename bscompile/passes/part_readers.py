"""Readers of a value that each take a part of it along one axis: Split, Slice and Gather."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.passes.graph import constant, is_op, only_reader, value_graph

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reader:
    """A part of a value.

    Attributes:
        nodes: What takes it; a Squeeze of the axis right after is one of them.
        value: The part.
        places: Where it lies along the axis, in its own order.
        drops: Whether it lacks the axis.
    """

    nodes: tuple[ir.Node, ...]
    value: ir.Value
    places: Index
    drops: bool


def readers_of(value: ir.Value) -> tuple[int, list[Reader]] | None:
    """(axis, what each reader takes along it); None where one does anything else."""
    if value.is_graph_output() or value.shape is None or not value.uses():
        return None
    found: list[Reader] = []
    axes = set()
    rank = len(value.shape)
    for node in dict.fromkeys(use.node for use in value.uses()):
        axis = _axis_of(node, rank)
        if axis is None or node.inputs[0] is not value or value in node.inputs[1:]:
            return None
        length = value.shape[axis]
        taken = _taken(node, length) if isinstance(length, int) else None
        if taken is None or node.graph is not value_graph(value):
            return None
        axes.add(axis)
        found += [_without_axis(part, axis, rank) or part for part in taken]
    return (axes.pop(), found) if len(axes) == 1 else None


def _axis_of(node: ir.Node, rank: int) -> int | None:
    if not rank:
        return None
    if is_op(node, "Split", "Gather"):
        return node.attributes.get_int("axis", 0) % rank
    axes = constant(node.inputs[3]) if is_op(node, "Slice") and len(node.inputs) > 3 else None
    return int(axes.reshape(())) % rank if axes is not None and axes.size == 1 else None


def _taken(node: ir.Node, length: int) -> list[Reader] | None:
    """What a node takes of an axis, one for each of its results that is used."""
    every = np.arange(length)
    if is_op(node, "Split"):
        axis = node.attributes.get_int("axis", 0)
        sizes = [0 if y.shape is None else y.shape[axis] for y in node.outputs]
        known = [size for size in sizes if isinstance(size, int)]
        if len(known) < len(sizes) or sum(known) != length:
            return None
        parts = np.split(every, np.cumsum(known)[:-1])
        pairs = zip(node.outputs, parts, strict=True)
        used = [(y, places) for y, places in pairs if y.uses() or y.is_graph_output()]
        return [Reader((node,), y, places, False) for y, places in used]
    y = node.outputs[0]
    if is_op(node, "Gather"):
        index = constant(node.inputs[1])
        if index is None or index.ndim > 1 or not index.size:
            return None
        return [Reader((node,), y, every[index.reshape(-1)], index.ndim == 0)]
    limits = [constant(v) for v in (*node.inputs[1:3], *node.inputs[4:5])]
    if any(limit is None or limit.size != 1 for limit in limits):
        return None
    start, end, *step = (int(limit.reshape(())) for limit in limits if limit is not None)
    if min(step, default=1) < 1:
        return None  # backwards, the end has another meaning
    places = every[slice(start, end, *step)]
    return [Reader((node,), y, places, False)] if places.size else None


def _without_axis(part: Reader, axis: int, rank: int) -> Reader | None:
    """The part after a Squeeze that alone reads it and drops its axis."""
    node = only_reader(part.value)
    if part.drops or len(part.places) != 1 or node is None or not is_op(node, "Squeeze"):
        return None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or [int(a) % rank for a in axes.reshape(-1)] != [axis]:
        return None
    return Reader((*part.nodes, node), node.outputs[0], part.places, True)

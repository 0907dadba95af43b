"""Which values of a graph share one feature axis, so that it can only shrink in all of them.

The output of a layer, what elementwise operators make of it and the input of the next layers are
tied: feature j of one is feature j of all. Reshape, Flatten and Transpose carry features along
(feature_layout.py); Softmax over another axis and products of two activations keep them apart, as
attention does with its heads. A group is a connected component of that relation. It is closed if
every feature comes from a layer with a constant weight and goes only to such layers; everything
else (LayerNormalization, other axes, inputs and outputs of the graph) blocks it.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import TENSOR_STEPS, is_float_layer, tensor_inputs
from bscompile.passes.feature_layout import (
    Layout,
    after_reshape,
    after_transpose,
    is_reshape,
)
from bscompile.passes.feature_orders import Ties, tied_in_order
from bscompile.passes.graph import constant, is_op

Array = npt.NDArray[Any]

#: One result per feature, in a group's axis and everywhere else.
ELEMENTWISE = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf"),
    *("Gelu", "Softplus", "Mish", "Exp", "Sqrt", "Abs", "Neg", "Identity", "Clip"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Where", "IsNaN"),
)
#: Keep a feature map of one value that value, except for zeros that are averaged in.
POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


@dataclass(eq=False)
class FeatureGroup:
    """A connected component of values that share a feature axis.

    Attributes:
        size: Number of features.
        layouts: The tied values and where the features lie in each.
        producers: Layers whose outputs they are.
        consumers: Layers that read one of them as x.
        between: All other nodes, in topological order.
        blockers: What else makes or reads the values, in words; empty for a closed group.
        joined: How many features must go together to pass a Reshape that stopped them; 1 if none.
        is_joined: Whether its features are such, heads for example; single ones may stop elsewhere.
        only_order: Whether the features will all stay, in another order, so that norms and sums
            over them tie what they would otherwise block; see feature_orders.py.
        cell: Features that have to stay together, such as those of a head; all where there are
            no cells.
    """

    size: int
    layouts: dict[ir.Value, Layout] = field(default_factory=dict)
    producers: list[ir.Node] = field(default_factory=list)
    consumers: list[ir.Node] = field(default_factory=list)
    between: list[ir.Node] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)
    joined: int = 1
    is_joined: bool = False
    only_order: bool = False
    cell: int = 0

    @property
    def values(self) -> Set[ir.Value]:
        """The tied values."""
        return self.layouts.keys()


def feature_axis(node: ir.Node) -> int:
    """The feature axis of a layer's input and output."""
    return -3 if node.op_type.endswith("Conv") else -1


def group_of(
    graph: ir.Graph,
    start: ir.Value,
    layout: Layout,
    size: int,
    ignoring: ir.Node | None = None,
    only_order: bool = False,
) -> FeatureGroup:
    """The group of one value whose feature axis is known.

    Args:
        graph: Where the value lives.
        start: The value.
        layout: Where its features lie.
        size: Its number of features.
        ignoring: A node that is no blocker, because the caller will remove it.
        only_order: See FeatureGroup.
    """
    group = FeatureGroup(size, {start: layout}, only_order=only_order, cell=size)
    blockers: dict[str, None] = {}
    nodes: set[ir.Node] = set()
    waiting = [start]
    while waiting:
        value = waiting.pop()
        touching = {use.node for use in value.uses()}
        producer = value.producer()
        if value.is_graph_output():
            blockers["it is an output of the graph"] = None
        if producer is None:
            blockers["it comes from outside the layers"] = None
        else:
            touching.add(producer)
        for node in touching:
            met = node in nodes and not is_float_layer(node) and not only_order
            if node is ignoring or met:
                continue  # a layer may be met again, it has two sides; so may a matmul in order
            reached = _tied_by(graph, node, value, group)
            if isinstance(reached, str):
                blockers[reached] = None
                continue
            nodes.add(node)
            for other, place in reached:
                if other not in group.layouts:
                    group.layouts[other] = place
                    waiting.append(other)
                elif group.layouts[other] != place:
                    blockers[f"{node.op_type} brings it together with itself in another order"] = (
                        None
                    )
    group.blockers = list(blockers)
    for node in graph:
        if node not in nodes:
            continue
        if not is_float_layer(node):
            group.between.append(node)
            continue
        if node.outputs[0] in group.layouts:
            group.producers.append(node)
            if _computed_bias(node):
                group.blockers.append(f"the bias of {node.name} is computed")
        if node.inputs[0] in group.layouts:
            group.consumers.append(node)
    return group


def _tied_by(graph: ir.Graph, node: ir.Node, value: ir.Value, group: FeatureGroup) -> Ties | str:
    """The values that a node ties to one of its own, or why it blocks the group."""
    layout = group.layouts[value]
    if node.graph is not graph:
        return "the body of If or Loop reads it"
    if group.only_order:
        ties = tied_in_order(node, value, group)
        if ties is not None:
            return ties
    if is_float_layer(node):
        return _tied_by_layer(node, value, layout)
    y = node.outputs[0]
    if is_op(node, *POOLING) and layout == Layout(-3) and len(node.outputs) == 1:
        assert node.inputs[0] is not None
        return [(node.inputs[0], layout), (y, layout)]
    if is_reshape(node):
        return _tied_by_reshape(node, value, group)
    if is_op(node, "Transpose"):
        return _tied_by_transpose(node, value, layout)
    if is_op(node, "Softmax", "LogSoftmax") and not _along(node, layout):
        assert node.inputs[0] is not None
        return [(node.inputs[0], layout), (y, layout)]
    per_matrix = is_op(node, "MatMul") and layout.axis <= -3
    if not per_matrix and not is_op(node, *ELEMENTWISE):
        verb = "makes" if value in node.outputs else "reads"
        return f"{node.op_type} {verb} it"
    return _tied_by_broadcast(node, value, layout, group.size)


def _along(node: ir.Node, layout: Layout) -> bool:
    """Whether a Softmax goes over the features."""
    shape, axis = node.outputs[0].shape, node.attributes.get_int("axis", -1)
    return shape is None or axis in (layout.axis, len(shape) + layout.axis)


def _tied_by_broadcast(node: ir.Node, value: ir.Value, layout: Layout, size: int) -> Ties | str:
    """Each feature of the result comes from that feature of the operands alone."""
    axis, y = layout.axis, node.outputs[0]
    tied = [y]
    for other in node.inputs:
        if other is None or constant(other) is not None:
            continue
        if other.shape is None:
            return f"an operand of {node.op_type} has an unknown shape"
        length = other.shape[axis] if len(other.shape) >= -axis else 1
        if length == layout.length(size):
            tied.append(other)
        elif other is value or length != 1:
            return f"an operand of {node.op_type} broadcasts its features"
    if y.shape is None or len(y.shape) < -axis or y.shape[axis] != layout.length(size):
        return f"{node.op_type} broadcasts it"
    return [(v, layout) for v in tied]


def _tied_by_reshape(node: ir.Node, value: ir.Value, group: FeatureGroup) -> Ties | str:
    x, y = node.inputs[0], node.outputs[0]
    verb = "makes" if value is y else "reads"
    other = x if value is y else y
    if x is None or other is None or (value is not x and value is not y):
        return f"{node.op_type} takes it for a shape"
    if x.shape is None or y.shape is None or value.shape is None or other.shape is None:
        return f"{node.op_type} {verb} it"
    layout = after_reshape(value.shape, other.shape, group.layouts[value], group.size)
    if isinstance(layout, int):
        group.joined = math.lcm(group.joined, layout)
    if not isinstance(layout, Layout):
        return f"{node.op_type} {verb} it"
    return [(value, group.layouts[value]), (other, layout)]


def _tied_by_transpose(node: ir.Node, value: ir.Value, layout: Layout) -> Ties | str:
    x, y = node.inputs[0], node.outputs[0]
    if x is None or value.shape is None:
        return "Transpose moves it and its rank is not known"
    moved = after_transpose(node, layout, len(value.shape), backwards=value is y)
    return [(value, layout), (x if value is y else y, moved)]


def _tied_by_layer(node: ir.Node, value: ir.Value, layout: Layout) -> Ties | str:
    """A layer ends the group at x and at y; its residual is tied to y."""
    steps = [s for s in node.attributes["epilogue"].as_string().split(",") if s in TENSOR_STEPS]
    tensors = list(zip(steps, tensor_inputs(node), strict=True))
    if any(tensor is value and step == "bias" for step, tensor in tensors):
        return f"{node.name} adds it as a bias"
    whole = layout.cells is None and (layout.run == 1 or layout.axis == -1) and layout.outer == 1
    if layout.axis != feature_axis(node) or not whole:
        return f"{node.name} reads it along another axis"
    residuals = [tensor for step, tensor in tensors if step == "residual"]
    tied = [node.inputs[0]] if value is node.inputs[0] else []
    if value is node.outputs[0] or value in residuals:
        tied += [node.outputs[0], *residuals]
    return [(v, layout) for v in tied if v is not None]


def _computed_bias(node: ir.Node) -> bool:
    steps = [s for s in node.attributes["epilogue"].as_string().split(",") if s in TENSOR_STEPS]
    tensors = zip(steps, tensor_inputs(node), strict=True)
    return any(step == "bias" and constant(tensor) is None for step, tensor in tensors)


def along_features(array: Array, layout: Layout, size: int) -> bool:
    """Whether a constant operand has entries of its own for each feature."""
    return array.ndim >= -layout.axis and array.shape[layout.axis] == layout.length(size)


def per_feature(array: Array, layout: Layout, size: int) -> Array | None:
    """A constant operand as [features] or [1]; None if it varies otherwise."""
    if array.size == 1:
        return array.reshape(1)
    if not along_features(array, layout, size) or array.size != layout.length(size):
        return None
    runs = array.reshape(layout.outer, size, layout.run)
    first = runs[0, :, 0]
    return first if (runs == first[:, None]).all() else None


def take_features(array: Array, layout: Layout, keep: npt.NDArray[np.int64]) -> Array:
    """The kept features of a constant operand."""
    size = array.shape[layout.axis] // (layout.outer * layout.run)
    return np.ascontiguousarray(np.take(array, layout.entries(keep, size), axis=layout.axis))

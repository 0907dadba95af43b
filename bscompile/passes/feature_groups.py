"""Which values of a graph share one feature axis, so that it can only shrink in all of them.

The output of a layer, what elementwise operators make of it and the input of the next layers are
tied: feature j of one is feature j of all. A group is a connected component of that relation. It
is closed if every feature comes from a layer with a constant weight and goes only to such layers;
everything else (Reshape, LayerNormalization, Softmax, inputs and outputs of the graph) blocks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import TENSOR_STEPS, is_float_layer, tensor_inputs
from bscompile.passes.graph import constant, is_op

Array = npt.NDArray[Any]

#: One result per feature, in a group's axis and everywhere else.
ELEMENTWISE = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf"),
    *("Gelu", "Softplus", "Mish", "Exp", "Sqrt", "Abs", "Neg", "Identity", "Clip"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum"),
)
#: Keep a feature map of one value that value, except for zeros that are averaged in.
POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


@dataclass(eq=False)
class FeatureGroup:
    """A connected component of values that share a feature axis.

    Attributes:
        axis: The feature axis from the end: -1 after a matmul, -3 after a convolution.
        size: Number of features.
        values: The tied values.
        producers: Layers whose outputs they are.
        consumers: Layers that read one of them as x.
        between: Elementwise and pooling nodes, in topological order.
        blockers: What else makes or reads the values, in words; empty for a closed group.
    """

    axis: int
    size: int
    values: set[ir.Value] = field(default_factory=set)
    producers: list[ir.Node] = field(default_factory=list)
    consumers: list[ir.Node] = field(default_factory=list)
    between: list[ir.Node] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)


def feature_axis(node: ir.Node) -> int:
    """The feature axis of a layer's input and output."""
    return -3 if node.op_type.endswith("Conv") else -1


def group_of(
    graph: ir.Graph,
    start: ir.Value,
    axis: int,
    size: int,
    ignoring: ir.Node | None = None,
) -> FeatureGroup:
    """The group of one value whose feature axis is known.

    Args:
        graph: Where the value lives.
        start: The value.
        axis: Its feature axis from the end.
        size: Its number of features.
        ignoring: A node that is no blocker, because the caller will remove it.
    """
    ties: nx.Graph[ir.Value] = nx.Graph()
    ties.add_node(start)
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
            if node is ignoring or (node in nodes and not is_float_layer(node)):
                continue  # a layer may be met again, it has two sides
            reached = _tied_by(graph, node, value, axis, size)
            if isinstance(reached, str):
                blockers[reached] = None
                continue
            nodes.add(node)
            for other in reached:
                if other not in ties:
                    waiting.append(other)
                ties.add_edge(value, other)
    values = set(nx.node_connected_component(ties, start))
    group = FeatureGroup(axis, size, values, blockers=list(blockers))
    for node in graph:
        if node not in nodes:
            continue
        if not is_float_layer(node):
            group.between.append(node)
            continue
        if node.outputs[0] in values:
            group.producers.append(node)
            if _computed_bias(node):
                group.blockers.append(f"the bias of {node.name} is computed")
        if node.inputs[0] in values:
            group.consumers.append(node)
    return group


def _tied_by(
    graph: ir.Graph, node: ir.Node, value: ir.Value, axis: int, size: int
) -> list[ir.Value] | str:
    """The values that a node ties to one of its own, or why it blocks the group."""
    if node.graph is not graph:
        return "the body of If or Loop reads it"
    if is_float_layer(node):
        return _tied_by_layer(node, value, axis)
    y = node.outputs[0]
    if is_op(node, *POOLING) and axis == -3 and len(node.outputs) == 1:
        assert node.inputs[0] is not None
        return [node.inputs[0], y]
    if not is_op(node, *ELEMENTWISE):
        verb = "makes" if value is y or value in node.outputs else "reads"
        return f"{node.op_type} {verb} it"
    tied = [y]
    for other in node.inputs:
        if other is None or constant(other) is not None:
            continue
        if other.shape is None or len(other.shape) < -axis:
            return f"an operand of {node.op_type} has an unknown shape"
        if other.shape[axis] == size:
            tied.append(other)
        elif other is value or other.shape[axis] != 1:
            return f"an operand of {node.op_type} broadcasts its features"
    if y.shape is None or len(y.shape) < -axis or y.shape[axis] != size:
        return f"{node.op_type} broadcasts it"
    return tied


def _tied_by_layer(node: ir.Node, value: ir.Value, axis: int) -> list[ir.Value] | str:
    """A layer ends the group at x and at y; its residual is tied to y."""
    steps = [s for s in node.attributes["epilogue"].as_string().split(",") if s in TENSOR_STEPS]
    tensors = list(zip(steps, tensor_inputs(node), strict=True))
    if any(tensor is value and step == "bias" for step, tensor in tensors):
        return f"{node.name} adds it as a bias"
    own = feature_axis(node)
    if own != axis:
        return f"{node.name} reads it along another axis"
    residuals = [tensor for step, tensor in tensors if step == "residual"]
    tied = [node.inputs[0]] if value is node.inputs[0] else []
    if value is node.outputs[0] or value in residuals:
        tied += [node.outputs[0], *residuals]
    return [v for v in tied if v is not None]


def _computed_bias(node: ir.Node) -> bool:
    steps = [s for s in node.attributes["epilogue"].as_string().split(",") if s in TENSOR_STEPS]
    tensors = zip(steps, tensor_inputs(node), strict=True)
    return any(step == "bias" and constant(tensor) is None for step, tensor in tensors)


def along_features(array: Array, axis: int, size: int) -> bool:
    """Whether a constant operand has one entry per feature (rather than one for all)."""
    return array.ndim >= -axis and array.shape[axis] == size


def per_feature(array: Array, axis: int, size: int) -> Array | None:
    """A constant operand as [features] or [1]; None if it varies along other axes."""
    if array.size == 1:
        return array.reshape(1)
    if along_features(array, axis, size) and array.size == size:
        return array.reshape(size)
    return None


def take_features(array: Array, axis: int, keep: npt.NDArray[np.int64]) -> Array:
    """The kept features of a constant operand."""
    return np.ascontiguousarray(np.take(array, keep, axis=axis))

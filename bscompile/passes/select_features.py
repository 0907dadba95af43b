"""Rewrite a whole group of values so that it holds other features, or in another order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import FOUND_KEY, TENSOR_STEPS, LinearOp, Weight, make_node, tensor_inputs
from bscompile.passes.feature_groups import FeatureGroup, along_features, take_features
from bscompile.passes.feature_layout import Layout, is_reshape
from bscompile.passes.feature_orders import HOLDING
from bscompile.passes.graph import add_initializer, constant, is_op, replace
from bscompile.passes.shrink_plan import GroupLayer, Index

Array = npt.NDArray[Any]


def select_features(
    graph: ir.Graph,
    group: FeatureGroup,
    layers: Sequence[GroupLayer],
    features: Index,
    weights: Sequence[Weight],
    shifts: Sequence[Array] | None = None,
) -> None:
    """Make feature j of every value of a closed group what feature ``features[j]`` was.

    Args:
        graph: The graph of the group.
        group: The values, and the nodes between layers whose constants are cut here.
        layers: All layers at its ends.
        features: Which of the old features to keep, in which order.
        weights: The new weight of each layer.
        shifts: What to add to each layer's bias, [out] before the layer itself is cut.
    """
    if len(features) != group.size:
        _give_shapes(graph, group, len(features))
    for node in group.between:
        if is_reshape(node) or node.outputs[0] not in group.layouts:
            continue
        layout = group.layouts[node.outputs[0]]
        for place, operand in enumerate(node.inputs):
            if place not in HOLDING.get(node.op_type, range(len(node.inputs))):
                continue
            array = constant(operand)
            if array is not None and along_features(array, layout, group.size):
                kept = take_features(array, layout, features)
                name = f"{node.name or node.op_type}.{place}"
                node.replace_input_with(place, add_initializer(graph, name, kept))
    for place, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
        steps, tensors = list(layer.op.epilogue), list(tensor_inputs(layer.node))
        x = layer.node.inputs[0]
        assert x is not None
        if shifts is not None and shifts[place].any():
            _add_bias(graph, layer.op.name, shifts[place], steps, tensors)
        if layer.outputs:
            _take_bias(graph, layer.op.name, layer.outputs.entries(features), steps, tensors)
        op = LinearOp(layer.op.name, weight, tuple(steps), layer.op.conv)
        made = make_node(op, graph, x, tuple(tensors), layer.node.outputs[0])
        _keep_found(layer.node, made, weight)
        replace(graph, [layer.node], [made])


def _give_shapes(graph: ir.Graph, group: FeatureGroup, features: int) -> None:
    """Tell every value of the group how many features it now has."""
    for node in group.between:
        if is_reshape(node):
            _reshape_anew(graph, node, group.layouts[node.outputs[0]], features)
    for value, layout in group.layouts.items():
        assert value.shape is not None
        dims = list(value.shape)
        dims[layout.axis] = layout.length(features)
        value.shape = ir.Shape(dims)


def _reshape_anew(graph: ir.Graph, node: ir.Node, layout: Layout, features: int) -> None:
    """Ask a Reshape, Flatten, Squeeze or Unsqueeze for the new number of features."""
    if not is_op(node, "Reshape"):
        return  # these follow from the input's shape
    y, asked = node.outputs[0], node.inputs[1]
    assert y.shape is not None
    assert asked is not None
    at, length = len(y.shape) + layout.axis, layout.length(features)
    name = f"{node.name or 'reshape'}.shape"
    target = constant(asked)
    if target is not None:
        target = target.copy()
        target[at] = length
        node.replace_input_with(1, add_initializer(graph, name, target))
        return
    ours = np.arange(len(y.shape)) == at  # the graph computes the other sizes
    mask = add_initializer(graph, f"{name}.mask", ours)
    lengths = add_initializer(graph, name, np.where(ours, length, 0).astype(np.int64))
    chosen = ir.Node("", "Where", [mask, lengths, asked])
    chosen.outputs[0].shape, chosen.outputs[0].dtype = asked.shape, ir.DataType.INT64
    graph.insert_before(node, chosen)
    node.replace_input_with(1, chosen.outputs[0])


def _add_bias(
    graph: ir.Graph, name: str, shift: Array, steps: list[str], tensors: list[ir.Value]
) -> None:
    if steps and steps[0] == "bias":
        old = constant(tensors[0])
        assert old is not None
        tensors[0] = add_initializer(graph, f"{name}.bias", (old + shift).astype(old.dtype))
    else:
        steps.insert(0, "bias")
        tensors.insert(0, add_initializer(graph, f"{name}.bias", shift.astype(np.float32)))


def _take_bias(
    graph: ir.Graph, name: str, features: Index, steps: list[str], tensors: list[ir.Value]
) -> None:
    with_tensor = [step for step in steps if step in TENSOR_STEPS]
    for place, step in enumerate(with_tensor):
        if step == "bias":
            old = constant(tensors[place])
            assert old is not None
            tensors[place] = add_initializer(graph, f"{name}.bias", old[features])


def _keep_found(old: ir.Node, new: ir.Node, weight: Weight) -> None:
    """What was recognised still holds, at the new density."""
    found = json.loads(old.metadata_props.get(FOUND_KEY, "{}"))
    if found:
        if not isinstance(weight, np.ndarray):
            found["density"] = round(weight.density, 6)
        new.metadata_props[FOUND_KEY] = json.dumps(found)

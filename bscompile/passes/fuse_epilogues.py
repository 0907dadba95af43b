"""What follows a linear layer elementwise becomes part of its op, so that y is written once.

    op(x) + bias [out], bias + op(x)             -> step bias
    Relu, Gelu, Swish, HardSwish, y·sigmoid(y), GELU in erf or tanh spelled out, Clip between
    numbers, LeakyRelu, HardSigmoid              -> an activation, see dialect/activations.py
    op(x) + t, t of y's shape                    -> step residual

Steps in order: bias, activation, residual; or bias, residual, relu or clip. A step is taken only
where nothing else reads the value between and it is no output of the graph; then the other operand
of an addition cannot depend on it, so no cycle can arise.

Refuses: additions that broadcast other than along out, or whose shapes are not surely equal.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bscompile.dialect import DOMAIN, VERSION, is_activation, is_dialect, step_of
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import (
    add_initializer,
    constant,
    is_op,
    layer_name,
    only_reader,
    replace,
    same_shape,
    scalar,
    static_shape,
)
from bscompile.passes.polynomial import ELEMENTWISE, activation_of

_AFTER_RESIDUAL = ("relu", "clip")
_LONGEST_SPELLING = 12  # nodes; the tanh form of GELU has eight


class FuseEpilogues(GraphPass):
    """Bias, activation and residual after a dialect node -> steps of its epilogue."""

    def rewrite(self, model: ir.Model) -> bool:
        """Extend every dialect node of the main graph as far as it goes."""
        for node in list(model.graph):
            if not is_dialect(node):
                continue
            current: ir.Node | None = node
            while current is not None:
                current = self._extend(model.graph, current)
        return bool(self.applied)

    def _extend(self, graph: ir.Graph, node: ir.Node) -> ir.Node | None:
        """Take one step into the node's epilogue; the new node, or None at the end."""
        steps = _steps(node)
        activated = any(is_activation(step) for step in steps)
        added = "residual" in steps
        y = node.outputs[0]
        if not activated:
            region, step = _activation(y)
            if step is not None and (not added or step.startswith(_AFTER_RESIDUAL)):
                return self._take(graph, node, region, step, None)
        reader = only_reader(y)
        if reader is None or not is_op(reader, "Add") or added:
            return None
        other = next((v for v in reader.inputs if v is not y), None)
        if other is None:
            return None
        if not steps:
            bias = _bias(graph, node, other)
            if bias is not None:
                return self._take(graph, node, [reader], "bias", bias)
        if same_shape(other, y):
            return self._take(graph, node, [reader], "residual", other)
        self.refused_for(
            layer_name(node),
            f"addition kept apart: shapes {y.shape} and {other.shape} are not surely equal",
        )
        return None

    def _take(
        self, graph: ir.Graph, node: ir.Node, region: list[ir.Node], step: str,
        tensor: ir.Value | None,
    ) -> ir.Node:  # fmt: skip
        attributes = [a for key, a in node.attributes.items() if key != "epilogue"]
        attributes.append(ir.AttrString("epilogue", ",".join((*_steps(node), step))))
        new = ir.Node(
            DOMAIN,
            node.op_type,
            [*node.inputs, *(() if tensor is None else (tensor,))],
            attributes,
            name=node.name,
            version=VERSION,
            metadata_props=dict(node.metadata_props),
        )
        replace(graph, [node, *region], [new])
        self.applied_to(layer_name(new), f"{step} fused")
        return new


def _steps(node: ir.Node) -> tuple[str, ...]:
    return tuple(s for s in node.attributes["epilogue"].as_string().split(",") if s)


def _activation(y: ir.Value) -> tuple[list[ir.Node], str | None]:
    """The nodes after ``y`` that together are one activation, the last one making its result."""
    reader = only_reader(y)
    if reader is not None:
        step = _named_activation(reader)
        if step is not None:
            return [reader], step
    region: list[ir.Node] = []
    known = [y]
    while len(region) < _LONGEST_SPELLING:
        node = _next_elementwise(known, region)
        if node is None:
            break
        region.append(node)
        known.append(node.outputs[0])
        if _closed(known, region):
            step = activation_of(known[-1], y)
            if step is not None:
                return region, step
    return [], None


def _named_activation(node: ir.Node) -> str | None:
    """Activations that are one operator."""
    if is_op(node, "Relu"):
        return "relu"
    if is_op(node, "HardSwish"):
        return "hard_swish"
    if is_op(node, "LeakyRelu"):
        return step_of("leaky_relu", node.attributes.get_float("alpha", 0.01))
    if is_op(node, "HardSigmoid"):
        ends = (node.attributes.get_float(*end) for end in (("alpha", 0.2), ("beta", 0.5)))
        return step_of("hard_sigmoid", *ends)
    if is_op(node, "Clip"):
        return _clip(node)
    if is_op(node, "Gelu"):
        approximate = node.attributes.get_string("approximate", "none")
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(approximate)
    if is_op(node, "Swish"):
        return "silu" if node.attributes.get_float("alpha", 1.0) == 1.0 else None
    return None


def _clip(node: ir.Node) -> str | None:
    """Clip between constants, or from one of them on; up to opset 10 they are attributes."""
    limits = []
    for index, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), 1):
        given = node.inputs[index] if index < len(node.inputs) else None
        limits.append(node.attributes.get_float(name, default) if given is None else scalar(given))
    low, high = limits
    if low is None or high is None or not low <= high:
        return None
    return "relu" if (low, high) == (0.0, math.inf) else step_of("clip", low, high)


def _next_elementwise(known: list[ir.Value], region: list[ir.Node]) -> ir.Node | None:
    """A node outside the region that computes with known values and numbers only."""
    for value in known:
        for use in value.uses():
            node = use.node
            if node in region or not is_op(node, *ELEMENTWISE):
                continue
            if all(v in known or _is_number(v) for v in node.inputs):
                return node
    return None


def _is_number(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.size == 1


def _closed(known: list[ir.Value], region: list[ir.Node]) -> bool:
    """Nobody outside reads a value of the region but its last one."""
    return all(
        not value.is_graph_output() and all(use.node in region for use in value.uses())
        for value in known[:-1]
    )


def _bias(graph: ir.Graph, node: ir.Node, other: ir.Value) -> ir.Value | None:
    """The other operand as a bias [out], if it adds one number to each output."""
    out = int(node.attributes["shape"].as_ints()[0])
    shape, y_shape = static_shape(other), node.outputs[0].shape
    if shape is None or y_shape is None or len(shape) > len(y_shape):
        return None
    conv = node.op_type.endswith("Conv")
    if not conv and shape == (out,):
        return other
    array = constant(other)
    if array is None:
        return None
    axis = len(y_shape) - 3 if conv else len(y_shape) - 1  # of the outputs, in y
    padded = (1,) * (len(y_shape) - len(shape)) + shape
    if any(size != 1 for i, size in enumerate(padded) if i != axis) or padded[axis] not in (1, out):
        return None
    row = np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (out,)))
    return add_initializer(graph, f"{layer_name(node)}.bias", row)

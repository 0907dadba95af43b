"""An axis of length one that is dropped and comes back need not go.

    Squeeze, f, Unsqueeze of the same axes  ->  f

f works on each value alone, on it and a constant, normalises channels, or is nothing.

Convolutions of one axis become ones of two with such pairs between them; without, what follows one
is part of its kernel, and the next reads its result in the layout in which it was computed.

Refuses: other readers between, axes that are computed, the first two axes where f normalises.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bscompile.passes.base import GraphPass
from bscompile.passes.graph import (
    add_initializer,
    constant,
    is_op,
    layer_name,
    only_reader,
    replace,
    same_shape,
)

_ALONE = (
    "Abs", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Neg",
    "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Swish", "Tanh",
)  # fmt: skip
_WITH_A_CONSTANT = ("Add", "Div", "Mul", "Sub")
_NORMS = ("GroupNormalization", "InstanceNormalization")  # axes 0 and 1 are batch and channels


class DropSqueezes(GraphPass):
    """Squeeze, operators that need no axis of length one, Unsqueeze -> those operators alone."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite every such chain of the main graph."""
        for node in list(model.graph):
            if is_op(node, "Squeeze") and node.graph is model.graph:
                self._drop(model.graph, node)
        return bool(self.applied)

    def _drop(self, graph: ir.Graph, squeeze: ir.Node) -> None:
        axes = _axes(squeeze, 0)
        chain: list[ir.Node] = []
        value = squeeze.outputs[0]
        while (reader := only_reader(value)) is not None and _may_stay(reader, value, axes or []):
            chain.append(reader)
            value = reader.outputs[0]
        if axes is None or reader is None or not is_op(reader, "Unsqueeze"):
            return
        back = reader.outputs[0]
        if _axes(reader, len(axes)) != axes or back.is_graph_output():
            return
        (x, *_) = squeeze.inputs
        assert x is not None  # the checker demands it
        made = []
        before = squeeze.outputs[0]
        for old in chain:
            inputs = [x, *old.inputs[1:]]
            if is_op(old, *_WITH_A_CONSTANT):
                inputs = [
                    x if v is before else _widened(graph, v, len(before.shape or ()), axes)
                    for v in old.inputs
                ]
            node = ir.Node("", old.op_type, inputs, list(old.attributes.values()), name=old.name)
            node.metadata_props.update(old.metadata_props)
            (y,), (before,) = node.outputs, old.outputs
            y.name, y.type, y.shape = before.name, before.type, x.shape
            made.append(node)
            x = y
        if made:
            replace(graph, [squeeze, *chain, reader], made)
        else:
            ir.convenience.replace_all_uses_with(back, x)
            graph.remove([reader, squeeze], safe=True)
        self.applied_to(layer_name(squeeze), "axes of length one are kept")


def _may_stay(node: ir.Node, value: ir.Value, axes: list[int]) -> bool:
    """Whether a reader of ``value`` computes the same with axes of length one in it."""
    if is_op(node, *_ALONE):
        return len(node.inputs) == 1
    if is_op(node, *_NORMS):
        return node.inputs[0] is value and min(axes, default=0) > 1
    if not is_op(node, *_WITH_A_CONSTANT) or not same_shape(node.outputs[0], value):
        return False
    (other,) = (v for v in node.inputs if v is not value)
    return constant(other) is not None


def _widened(graph: ir.Graph, value: ir.Value | None, rank: int, axes: list[int]) -> ir.Value:
    """A constant beside a tensor of ``rank`` axes, beside the same with ``axes`` in it."""
    known = constant(value)
    assert known is not None  # asked before
    assert value is not None
    if known.ndim == 0:
        return value
    whole = known.reshape((1,) * (rank - known.ndim) + known.shape)
    return add_initializer(graph, f"{value.name}.wide", np.expand_dims(whole, tuple(axes)))


def _axes(node: ir.Node, more: int) -> list[int] | None:
    """The constant axes of a Squeeze or Unsqueeze, counted from the front of the larger tensor."""
    value = node.inputs[0]
    known = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if known is None or value is None or value.shape is None:
        return None
    rank = len(value.shape) + more
    return sorted(int(axis) % rank for axis in known.reshape(-1))

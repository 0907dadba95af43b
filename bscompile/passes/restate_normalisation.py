"""Group normalisation as exporters spell it, told in one operator.

    Reshape [b, g, -1], InstanceNormalization, Reshape back  ->  GroupNormalization in g groups
    the same with g = c, or without the way back             ->  InstanceNormalization

Without the reshapes the channels are an axis of their own all the way, so that an image keeps the
layout in which it was computed. What follows, channel by channel, stays as it is.

Refuses: other readers between, sizes that are computed, groups that do not divide the channels.
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

#: Before it, ONNX has no GroupNormalization that is not deprecated. Versions 20 and 21 differ in
#: nothing else but types that were added, so that a model of the one is a model of the other.
_OPSET = 21


class RestateNormalisation(GraphPass):
    """Reshape, InstanceNormalization, Reshape -> one normalisation of the channels in groups."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite every such chain of the main graph."""
        for node in list(model.graph):
            if is_op(node, "InstanceNormalization"):
                self._restate(model.graph, node)
        if any(is_op(node, "GroupNormalization") for node in model.graph):
            model.opset_imports[""] = max(_OPSET, model.opset_imports[""])
        return bool(self.applied)

    def _restate(self, graph: ir.Graph, node: ir.Node) -> None:
        merge = node.inputs[0].producer() if node.inputs[0] is not None else None
        if merge is None or not is_op(merge, "Reshape"):
            return
        x, (y,) = merge.inputs[0], node.outputs
        if x is None or x.shape is None or only_reader(merge.outputs[0]) is not node:
            return
        split = only_reader(y)
        last = node
        if split is not None and is_op(split, "Reshape") and same_shape(split.outputs[0], x):
            last = split
        channels, groups = _groups(x.shape, merge.outputs[0].shape)
        if not groups or channels % groups or not same_shape(last.outputs[0], x):
            return
        vectors = node.inputs[1:3]
        attributes: dict[str, int | float] = {"epsilon": node.attributes.get_float("epsilon", 1e-5)}
        operator = "InstanceNormalization"
        if groups < channels:
            operator, attributes["num_groups"] = "GroupNormalization", groups
            vectors = [_repeated(graph, vector, channels // groups) for vector in vectors]
            if None in vectors:
                return
        made = ir.node(operator, [x, *vectors], attributes)
        made.name = node.name
        made.metadata_props.update(node.metadata_props)
        before = last.outputs[0]
        made.outputs[0].name, made.outputs[0].type = before.name, before.type
        made.outputs[0].shape = x.shape
        replace(graph, [merge, node] if last is node else [merge, node, last], [made])
        self.applied_to(layer_name(node), f"{operator} without reshapes")


def _groups(x: ir.Shape, merged: ir.Shape | None) -> tuple[int, int]:
    """(channels, groups) of x [b, c, ...] and its reshape [b, g, rest]; zeros where unsure."""
    if merged is None or len(x) < 3 or len(merged) != 3:
        return 0, 0
    batch, channels, groups = x[0], x[1], merged[1]
    if batch != merged[0] or (isinstance(batch, ir.SymbolicDim) and batch.value is None):
        return 0, 0
    if not isinstance(channels, int) or not isinstance(groups, int):
        return 0, 0
    return channels, groups


def _repeated(graph: ir.Graph, value: ir.Value | None, times: int) -> ir.Value | None:
    """A number for each group as one for each channel; None where it is computed."""
    known = constant(value)
    if known is None or value is None:
        return None
    return add_initializer(graph, f"{value.name}.channels", np.repeat(known, times))

"""A convolution in groups is one without, whose weight has blocks on its diagonal only.

    Conv(x, K, b), group g               K [n, c/g, kh, kw]
      -> Conv(x, K', b)                  K' [n, c, kh, kw], zero where channels of another group are

and the same for ConvTranspose, whose K is [c, n/g, kh, kw]. The layer then has zero blocks like any
other, and runs as such: no kernel knows of groups. K' is g times as large as K while the model is
built; where that is too much, some groups at a time make a Conv of their own:

      -> Concat(Conv(x[:, :c/s]), .., Conv(x[:, -c/s:]))      s parts of g/s groups each

Refuses: kernels that are computed, dtypes other than float32. A Conv with one input and one output
channel for each group stays: targets have code of their own for depthwise convolutions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.passes.base import GraphPass
from bscompile.passes.graph import add_initializer, constant, is_op, layer_name, replace

Array = npt.NDArray[Any]

_MOST_BYTES = 16 << 20  # of a part's K'


class MergeGroups(GraphPass):
    """Conv and ConvTranspose in groups -> without groups, zero blocks in the weight."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite every such node of the main graph."""
        for node in list(model.graph):
            if not is_op(node, "Conv", "ConvTranspose") or len(node.inputs) < 2:
                continue
            groups = node.attributes.get_int("group", 1)
            kernel = constant(node.inputs[1])
            if groups == 1 or kernel is None or not kernel.size or not 3 <= kernel.ndim <= 4:
                continue
            if _is_depthwise(node, kernel, groups) or kernel.dtype != np.float32:
                continue
            name = layer_name(node, node.inputs[1])
            parts = _parts(kernel, groups)
            replace(model.graph, [node], _rewritten(model.graph, node, name, kernel, groups, parts))
            text = "one layer" if parts == 1 else f"{parts} layers"
            self.applied_to(name, f"{groups} groups became {text} with zero blocks between them")
        return bool(self.applied)


def _is_depthwise(node: ir.Node, kernel: Array, groups: int) -> bool:
    return node.op_type == "Conv" and kernel.shape[:2] == (groups, 1)


def _parts(kernel: Array, groups: int) -> int:
    """The fewest parts of equally many groups whose weights are small enough."""
    divisors = (parts for parts in range(1, groups + 1) if groups % parts == 0)
    return next(
        p for p in divisors if kernel.nbytes // p * (groups // p) <= _MOST_BYTES or p == groups
    )


def _rewritten(
    graph: ir.Graph, node: ir.Node, name: str, kernel: Array, groups: int, parts: int
) -> list[ir.Node]:
    attributes = [a for a in node.attributes.values() if a.name != "group"]
    x, _, *rest = node.inputs
    bias = next((value for value in rest if value is not None), None)
    channels = len(kernel) if node.op_type == "ConvTranspose" else kernel.shape[1] * groups
    outputs = kernel.shape[1] * groups if node.op_type == "ConvTranspose" else len(kernel)
    new: list[ir.Node] = []

    def part(value: ir.Value, number: int, length: int, axis: int) -> ir.Value:
        """One of ``parts`` equal parts of an axis of ``length``."""
        known, step = constant(value), length // parts
        first, last = number * step, (number + 1) * step
        if parts == 1:
            return value
        if known is not None:
            return add_initializer(graph, f"{name}.{number}.bias", known[first:last])
        limits = [
            add_initializer(graph, f"{name}.{number}.{suffix}", np.array([at], np.int64))
            for suffix, at in (("first", first), ("last", last), ("axis", axis))
        ]
        new.append(ir.node("Slice", [value, *limits]))
        cut = new[-1].outputs[0]
        cut.name, cut.type = f"{name}.{number}.{value.name}", value.type
        if value.shape is not None:
            cut.shape = ir.Shape([step if a == axis else d for a, d in enumerate(value.shape)])
        return cut

    assert x is not None  # the checker demands it
    results = []
    for number, weight in enumerate(np.split(kernel, parts)):
        whole = _diagonal(weight, groups // parts)
        inputs = [part(x, number, channels, 1)]
        inputs.append(add_initializer(graph, f"{name}.{number}" if parts > 1 else name, whole))
        inputs += [] if bias is None else [part(bias, number, outputs, 0)]
        conv = ir.Node("", node.op_type, inputs, attributes, name=f"{name}.{number}")
        conv.metadata_props.update(node.metadata_props)
        new.append(conv)
        (y,), (old,) = conv.outputs, node.outputs
        y.name, y.type = f"{name}.{number}.y", old.type
        if old.shape is not None:
            y.shape = ir.Shape([outputs // parts if a == 1 else d for a, d in enumerate(old.shape)])
        results.append(y)
    if parts > 1:
        new.append(ir.node("Concat", results, {"axis": 1}))
        joined = new[-1].outputs[0]
        joined.name, joined.type, joined.shape = (
            f"{name}.y",
            node.outputs[0].type,
            node.outputs[0].shape,
        )
    return new


def _diagonal(kernel: Array, groups: int) -> Array:
    """K [groups a, b, ..] -> [groups a, groups b, ..] with the groups on its diagonal."""
    rows, columns = len(kernel) // groups, kernel.shape[1]
    whole = np.zeros((len(kernel), groups * columns, *kernel.shape[2:]), kernel.dtype)
    for g in range(groups):
        there = slice(g * rows, (g + 1) * rows)
        whole[there, g * columns : (g + 1) * columns] = kernel[there]
    return whole

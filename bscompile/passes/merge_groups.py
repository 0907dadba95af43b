"""A convolution in groups is one without, whose weight has blocks on its diagonal only.

    Conv(x, K, b), group g               K [n, c/g, kh, kw]
      -> Conv(x, K', b)                  K' [n, c, kh, kw], zero where channels of another group are

and the same for ConvTranspose, whose K is [c, n/g, kh, kw]. The layer then has zero blocks like any
other, and runs as such: no kernel knows of groups. K' is g times as large as K while the model is
built; where that is too much, some groups at a time make a Conv of their own:

      -> Concat(Conv(x[:, :c/s]), .., Conv(x[:, -c/s:]))      s parts of g/s groups each

Refuses: kernels that are computed, dtypes other than float32. A Conv with one input and one output
channel for each group stays: targets have code of their own for depthwise convolutions. So does one
that only lists windows: it is a part of a factorized convolution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.passes.absorb_windows import listing_geometry
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
            if listing_geometry(node) is not None:  # for AbsorbWindows: a factorized convolution
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


@dataclass
class _Parts:
    """The nodes that one node becomes: for each part a Conv and what cuts its inputs."""

    graph: ir.Graph
    node: ir.Node
    name: str
    count: int
    nodes: list[ir.Node] = field(default_factory=list)

    def cut(self, value: ir.Value, number: int, axis: int, step: int) -> ir.Value:
        """A part of ``value``, ``step`` long on an axis."""
        known, first, last = constant(value), number * step, (number + 1) * step
        if self.count == 1:
            return value
        if known is not None:
            return self._constant(f"{number}.bias", known[first:last])
        places = {"first": first, "last": last, "axis": axis}
        limits = [self._constant(f"{number}.{k}", np.array([v])) for k, v in places.items()]
        node = ir.node("Slice", [value, *limits])
        return self._append(node, f"{number}.{value.name}", value, axis, step)

    def layer(self, number: int, kernel: Array, groups: int, channels: int, outputs: int) -> None:
        """Append the Conv of some groups; ``channels`` and ``outputs`` are theirs."""
        x, _, *rest = self.node.inputs
        assert x is not None  # the checker demands it
        weight = self._constant(f"{number}.kernel", _diagonal(kernel, groups))
        inputs = [self.cut(x, number, 1, channels), weight]
        inputs += [self.cut(b, number, 0, outputs) for b in rest if b is not None]
        attributes = [a for a in self.node.attributes.values() if a.name != "group"]
        own = self.name if self.count == 1 else f"{self.name}.{number}"
        node = ir.Node("", self.node.op_type, inputs, attributes, name=own)
        node.metadata_props.update(self.node.metadata_props)
        self._append(node, f"{number}.y", self.node.outputs[0], 1, outputs)

    def join(self) -> None:
        """Append the Concat of the parts' results."""
        parts = [n.outputs[0] for n in self.nodes if n.op_type == self.node.op_type]
        if self.count > 1:
            outputs = self.node.outputs[0]
            length = outputs.shape[1] if outputs.shape is not None else 0
            self._append(ir.node("Concat", parts, {"axis": 1}), "y", outputs, 1, length)

    def _constant(self, suffix: str, array: Array) -> ir.Value:
        return add_initializer(self.graph, f"{self.name}.{suffix}", array)

    def _append(
        self, node: ir.Node, suffix: str, like: ir.Value, axis: int, length: int | ir.SymbolicDim
    ) -> ir.Value:
        """The node's result: like another value but for the length of one axis."""
        self.nodes.append(node)
        (y,) = node.outputs
        y.name, y.type = f"{self.name}.{suffix}", like.type
        if like.shape is not None:
            y.shape = ir.Shape([length if a == axis else d for a, d in enumerate(like.shape)])
        return y


def _rewritten(
    graph: ir.Graph, node: ir.Node, name: str, kernel: Array, groups: int, count: int
) -> list[ir.Node]:
    parts = _Parts(graph, node, name, count)
    first, second = len(kernel) // count, kernel.shape[1] * (groups // count)
    channels, outputs = (second, first) if node.op_type == "Conv" else (first, second)
    for number, weight in enumerate(np.split(kernel, count)):
        parts.layer(number, weight, groups // count, channels, outputs)
    parts.join()
    return parts.nodes


def _diagonal(kernel: Array, groups: int) -> Array:
    """K [groups a, b, ..] -> [groups a, groups b, ..] with the groups on its diagonal."""
    rows, columns = len(kernel) // groups, kernel.shape[1]
    whole = np.zeros((len(kernel), groups * columns, *kernel.shape[2:]), kernel.dtype)
    for g in range(groups):
        there = slice(g * rows, (g + 1) * rows)
        whole[there, g * columns : (g + 1) * columns] = kernel[there]
    return whole

"""Convolutions that are something simpler in other words.

    Conv of one axis                    -> Conv of two, the first of length one
    ConvTranspose, stride = kernel      -> MatMul, its results laid side by side
    ConvTranspose of one or two axes    -> zeros between the values, then Conv, the kernel turned

So they get the kernels of convolutions and matmuls, and zero blocks in their weights count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.passes.base import GraphPass
from bscompile.passes.graph import add_initializer, constant, is_op, layer_name, replace

Array = npt.NDArray[Any]
Lengths = Sequence[int | ir.SymbolicDim]


class RestateConvolutions(GraphPass):
    """Conv and ConvTranspose with a constant kernel that other operators compute as well."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite every such node of the main graph."""
        before = len(self.applied)
        for node in list(model.graph):
            if not is_op(node, "Conv", "ConvTranspose") or len(node.inputs) < 2:
                continue
            operand = node.inputs[1]
            kernel = None if operand is None else constant(operand)
            shape, result = _lengths(node.inputs[0]), _lengths(node.outputs[0])
            if kernel is None or shape is None or result is None or not 3 <= kernel.ndim <= 4:
                continue
            name = layer_name(node, operand)
            chain = _Chain(model.graph, node, name)
            if kernel.ndim == 3:
                _widen(chain, kernel, shape, result)
                self.applied_to(name, f"{node.op_type} of one axis became one of two")
            elif node.op_type == "ConvTranspose":
                text = _turn(chain, kernel, shape, result)
                if text is None:
                    self.refused_for(name, "ConvTranspose in groups, or cut at its edges")
                    continue
                self.applied_to(name, text)
            else:
                continue
            replace(model.graph, [node], chain.nodes)
            if kernel.ndim == 3 and node.op_type == "ConvTranspose":
                self._again(model.graph, chain.nodes[-2])
        return len(self.applied) > before

    def _again(self, graph: ir.Graph, node: ir.Node) -> None:
        """A ConvTranspose that was just given its second axis."""
        kernel = constant(node.inputs[1])
        shape, result = _lengths(node.inputs[0]), _lengths(node.outputs[0])
        assert kernel is not None  # just made
        assert shape is not None
        assert result is not None
        chain = _Chain(graph, node, layer_name(node, node.inputs[1]))
        if _turn(chain, kernel, shape, result) is not None:
            replace(graph, [node], chain.nodes)


@dataclass
class _Chain:
    """Nodes one after the other, each reading the one before."""

    graph: ir.Graph
    node: ir.Node
    name: str

    def __post_init__(self) -> None:
        self.nodes: list[ir.Node] = []
        (x, *_) = self.node.inputs
        assert x is not None
        self.value: ir.Value = x

    def constant(self, suffix: str, array: Array) -> ir.Value:
        return add_initializer(self.graph, f"{self.name}.{suffix}", array)

    def then(
        self, op_type: str, inputs: Sequence[ir.Value | None], shape: Lengths, **attributes: Any
    ) -> None:
        """Append a node that reads the chain so far and ``inputs``."""
        node = ir.node(op_type, [self.value, *inputs], attributes)
        node.name = f"{self.name}.{op_type}.{len(self.nodes)}"
        node.metadata_props.update(self.node.metadata_props)
        (y,) = node.outputs
        y.name, y.type, y.shape = node.name, self.value.type, ir.Shape(shape)
        self.nodes.append(node)
        self.value = y

    def reshape(self, target: Sequence[int], shape: Lengths) -> None:
        """Append a Reshape; 0 in ``target`` keeps a length."""
        self.then("Reshape", [self.constant("shape", np.array(target, np.int64))], shape)


def _widen(chain: _Chain, kernel: Array, shape: Lengths, result: Lengths) -> None:
    """One axis -> two, the first of length one."""
    attributes = _attributes(chain.node)
    spread = {"kernel_shape": [1], "strides": [1], "dilations": [1], "output_padding": [0]}
    for key, first in spread.items():
        if key in attributes:
            attributes[key] = [*first, *attributes[key]]
    if "pads" in attributes:
        begin, end = attributes["pads"]
        attributes["pads"] = [0, begin, 0, end]
    if "output_shape" in attributes:
        attributes["output_shape"] = [1, *attributes["output_shape"]]
    axis = chain.constant("axis", np.array([2], np.int64))
    weight = chain.constant("kernel", kernel[:, :, None])
    chain.then("Unsqueeze", [axis], [shape[0], shape[1], 1, shape[2]])
    wide = [result[0], result[1], 1, result[2]]
    chain.then(chain.node.op_type, [weight, *chain.node.inputs[2:]], wide, **attributes)
    chain.then("Squeeze", [axis], result)


def _turn(chain: _Chain, kernel: Array, shape: Lengths, result: Lengths) -> str | None:
    """ConvTranspose -> MatMul or Conv; what became of it, None for «not so»."""
    attributes = _attributes(chain.node)
    window = kernel.shape[2:]
    plain = attributes.get("group", 1) == 1 and "output_shape" not in attributes
    if not plain or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    image, goal = _fixed(shape[2:]), _fixed(result[1:])
    if image is None or goal is None:
        return None
    strides = attributes.get("strides", [1, 1])
    dilations = attributes.get("dilations", [1, 1])
    pads, more = attributes.get("pads", [0] * 4), attributes.get("output_padding", [0, 0])
    bias = [value for value in chain.node.inputs[2:] if value is not None]
    if list(window) == list(strides) and not any(pads) and not any(more) and dilations == [1, 1]:
        _side_by_side(chain, kernel, shape[0], image, goal, bias)
        return "ConvTranspose with a stride as long as its kernel became a matmul"
    reach = [d * (k - 1) for d, k in zip(dilations, window, strict=True)]
    begin = [r - p for r, p in zip(reach, pads[:2], strict=True)]
    end = [r - p + o - s + 1 for r, p, o, s in zip(reach, pads[2:], more, strides, strict=True)]
    if min(begin + end) < 0:
        return None
    if strides != [1, 1]:
        _zeros_between(chain, shape[:2], image, strides)
    turned = np.ascontiguousarray(kernel.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])
    weight = chain.constant("kernel", turned)
    chain.then("Conv", [weight, *bias], result, pads=[*begin, *end], dilations=list(dilations))
    return "ConvTranspose became a convolution of the image with zeros between its values"


def _side_by_side(
    chain: _Chain,
    kernel: Array,
    batch: int | ir.SymbolicDim,
    image: Sequence[int],
    goal: Sequence[int],
    bias: list[ir.Value],
) -> None:
    """Each position makes a patch of its own: y[b, o, i·kh + p, j·kw + q] = x[b, :, i, j] K."""
    high, wide = image
    inner, outer, kh, kw = kernel.shape
    patch = outer * kh * kw
    known = constant(bias[0]) if bias else None
    chain.then("Transpose", [], [batch, high, wide, inner], perm=[0, 2, 3, 1])
    weight = chain.constant("weight", np.ascontiguousarray(kernel.reshape(inner, -1)))
    chain.then("MatMul", [weight], [batch, high, wide, patch])
    if known is not None:  # before the patches are cut, where it is part of the layer
        spread = chain.constant("bias", np.repeat(known, kh * kw))
        chain.then("Add", [spread], [batch, high, wide, patch])
    cut = [high, wide, outer, kh, kw]
    chain.reshape([0, *cut], [batch, *cut])
    chain.then("Transpose", [], [batch, outer, high, kh, wide, kw], perm=[0, 3, 1, 4, 2, 5])
    chain.reshape([0, *goal], [batch, *goal])
    if bias and known is None:
        column = chain.constant("column", np.array([-1, 1, 1], np.int64))
        node = ir.node("Reshape", [bias[0], column])
        node.outputs[0].name = f"{chain.name}.bias.column"
        chain.nodes.insert(0, node)
        chain.then("Add", [node.outputs[0]], [batch, *goal])


def _zeros_between(
    chain: _Chain, leading: Lengths, image: Sequence[int], strides: Sequence[int]
) -> None:
    """Image [b, c, h, w] -> [b, c, h·sh, w·sw], each value followed by zeros."""
    (high, wide), (sh, sw) = image, strides
    chain.reshape([0, 0, high, 1, wide, 1], [*leading, high, 1, wide, 1])
    pads = chain.constant("pads", np.array([0] * 6 + [0, 0, 0, sh - 1, 0, sw - 1], np.int64))
    chain.then("Pad", [pads], [*leading, high, sh, wide, sw])
    chain.reshape([0, 0, high * sh, wide * sw], [*leading, high * sh, wide * sw])


def _fixed(lengths: Lengths) -> tuple[int, ...] | None:
    """The lengths as numbers, None where one is symbolic."""
    numbers = tuple(length for length in lengths if isinstance(length, int))
    return numbers if len(numbers) == len(lengths) else None


def _lengths(value: ir.Value | None) -> Lengths | None:
    return None if value is None or value.shape is None else list(value.shape)


def _attributes(node: ir.Node) -> dict[str, Any]:
    plain = {}
    for key, attribute in node.attributes.items():
        value = attribute.value
        plain[key] = list(value) if isinstance(value, list | tuple) else value
    return plain

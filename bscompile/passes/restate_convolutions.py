"""Convolutions that are something simpler in other words.

    Conv of one axis                    -> Conv of two, the first of length one
    ConvTranspose without strides       -> Conv, the kernel turned
    ConvTranspose with strides          -> Conv for all phases at once, its results interleaved

Along one axis, with a stride s and a kernel w of k taps, ConvTranspose computes
y[t] = sum over j of x[i - j] w[r + s j] where t = s i + r: for each phase r < s a convolution with
ceil(k / s) taps. The phases read the same x, so they are s times as many channels of one Conv, and
nothing is multiplied by the zeros that a stride would put between the values. A kernel as long as
its stride has one tap for each phase, and the Conv is a matmul.

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
    """ConvTranspose -> Conv; what became of it, None for «not so»."""
    attributes = _attributes(chain.node)
    plain = attributes.get("group", 1) == 1 and "output_shape" not in attributes
    if not plain or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    image, goal = _fixed(shape[2:]), _fixed(result[1:])
    if image is None or goal is None:
        return None
    dilations = attributes.get("dilations", [1, 1])
    pads, more = attributes.get("pads", [0] * 4), attributes.get("output_padding", [0, 0])
    reach = [d * (k - 1) for d, k in zip(dilations, kernel.shape[2:], strict=True)]
    begin = [r - p for r, p in zip(reach, pads[:2], strict=True)]
    end = [r - p + o for r, p, o in zip(reach, pads[2:], more, strict=True)]
    if min(begin + end) < 0:
        return None
    strides = attributes.get("strides", [1, 1])
    if strides == [1, 1]:
        turned = np.ascontiguousarray(kernel.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])
        inputs = [chain.constant("kernel", turned), *_given(chain.node.inputs[2:])]
        chain.then("Conv", inputs, result, pads=[*begin, *end], dilations=list(dilations))
        return "ConvTranspose became a convolution with the kernel turned"
    _interleave(chain, _spread(kernel, dilations), strides, pads[:2], end, image, result)
    return "ConvTranspose became a convolution for all phases of its stride, interleaved"


def _spread(kernel: Array, dilations: Sequence[int]) -> Array:
    """The kernel with the zeros that its dilations put between its taps."""
    steps = tuple(slice(None, None, d) for d in dilations)
    lengths = [d * (k - 1) + 1 for d, k in zip(dilations, kernel.shape[2:], strict=True)]
    spread = np.zeros((*kernel.shape[:2], *lengths), kernel.dtype)
    spread[:, :, *steps] = kernel
    return spread


def _interleave(
    chain: _Chain,
    kernel: Array,
    strides: Sequence[int],
    cut: Sequence[int],
    end: Sequence[int],
    image: Sequence[int],
    result: Lengths,
) -> None:
    """Append the Conv with one group of channels for each phase, and what lays them out.

    Args:
        chain: Ends in x [b, c, h, w].
        kernel: [c, n, kh, kw], without dilations.
        strides: Of the two axes.
        cut: Values of y that ONNX leaves out at the beginning of each axis.
        end: Values of y behind the first that the last position of x makes, of each axis.
        image: Lengths of the two axes of x.
        result: Lengths of y [b, n, oh, ow].
    """
    (sh, sw), outer = strides, kernel.shape[1]
    taps = [-(-k // s) for k, s in zip(kernel.shape[2:], strides, strict=True)]
    # Whole positions that are cut need not be computed; the rest is cut from what was.
    skipped, rest = zip(*(divmod(c, s) for c, s in zip(cut, strides, strict=True)), strict=True)
    before = [t - 1 - s for t, s in zip(taps, skipped, strict=True)]
    after = [e // s for e, s in zip(end, strides, strict=True)]
    high, wide = (
        length + b + a - t + 1 for length, b, a, t in zip(image, before, after, taps, strict=True)
    )
    batch, channels = result[0], sh * sw * outer
    inputs = [chain.constant("kernel", _by_phase(kernel, taps, strides))]
    bias = _given(chain.node.inputs[2:])
    known = constant(bias[0]) if bias else None
    if known is not None:
        inputs.append(chain.constant("bias", np.tile(known, sh * sw)))
    chain.then("Conv", inputs, [batch, channels, high, wide], pads=[*before, *after])
    chain.then("Transpose", [], [batch, high, wide, channels], perm=[0, 2, 3, 1])
    if sh > 1:  # else the phases of a row lie side by side as they are
        chain.reshape([0, high, wide, sh, sw * outer], [batch, high, wide, sh, sw * outer])
        turned = [batch, high, sh, wide, sw * outer]
        chain.then("Transpose", [], turned, perm=[0, 1, 3, 2, 4])
    high, wide = high * sh, wide * sw
    chain.reshape([0, high, wide, outer], [batch, high, wide, outer])
    goal = _fixed(result[2:])
    assert goal is not None  # asked before
    if (high, wide) != goal:
        first = np.array(rest, np.int64)
        limits = [("first", first), ("last", first + goal), ("axes", np.array([1, 2], np.int64))]
        positions = [chain.constant(suffix, array) for suffix, array in limits]
        chain.then("Slice", positions, [batch, *goal, outer])
    if bias and known is None:
        chain.then("Add", bias, [batch, *goal, outer])
    chain.then("Transpose", [], result, perm=[0, 3, 1, 2])


def _by_phase(kernel: Array, taps: Sequence[int], strides: Sequence[int]) -> Array:
    """[c, n, kh, kw] -> [sh·sw·n, c, taps, taps], turned, with zeros where a phase has fewer."""
    (inner, outer, kh, kw), (th, tw), (sh, sw) = kernel.shape, taps, strides
    whole = np.pad(kernel, ((0, 0), (0, 0), (0, th * sh - kh), (0, tw * sw - kw)))
    split = whole.reshape(inner, outer, th, sh, tw, sw)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(split.transpose(3, 5, 1, 0, 2, 4)).reshape(-1, inner, th, tw)


def _given(inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """The inputs that are there."""
    return [value for value in inputs if value is not None]


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

"""MatMul, Gemm and Conv with a constant weight become dialect ops; zero blocks are found.

    MatMul(x, B)             B [in, out]       W = Bᵀ
    MatMul(A, x)             A [out, in]       W = A,  y = (xᵀ Wᵀ)ᵀ: only where A has zero blocks
    Gemm(x, B, C)            B [in, out]       W = alpha Bᵀ    (transB: B [out, in])
                             transA            xᵀ first
                             C                 bias where it is [out], residual where it is y's
                                               shape, else beta C is added after
    Conv(x, K, b)            K [out, c, kh, kw], group 1       W = K [out, c kh kw]

The weight is a block-sparse matrix where ``detect_blocks`` finds zero blocks, dense otherwise.
A weight that others read besides stays as it is for them.

Refuses: weights that are not constant matrices, dtypes other than float32, x of unknown rank or
a vector, depthwise and 1-D or 3-D convolutions, padding that depends on an unknown size, nodes in
the body of If and Loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import FOUND_KEY, ConvGeometry, LinearOp, Weight, make_node
from bscompile.formats import BlockSparseMatrix
from bscompile.formats.detect import BlockPattern, detect_blocks
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import (
    add_initializer,
    constant,
    is_op,
    layer_name,
    replace,
    same_shape,
    static_shape,
)

Array = npt.NDArray[Any]


class RecogniseLinear(GraphPass):
    """Linear layers with constant weights -> Dense/BlockSparse MatMul/Conv."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite every layer of the main graph."""
        rules: dict[str, Callable[[ir.Graph, ir.Node], str | None]] = {
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "Conv": self._conv,
        }
        before = len(self.applied)
        for node in list(model.graph.all_nodes()):
            if not is_op(node, *rules) or not _has_constant_operand(node):
                continue
            weight = _weight_operand(node)
            if node.graph is not model.graph:
                reason: str | None = "inside the body of If or Loop"
            else:
                reason = _unfit(node) or rules[node.op_type](model.graph, node)
            if reason:
                self.refused_for(layer_name(node, weight), reason)
        return len(self.applied) > before

    # Each rule rewrites and returns None, or changes nothing and returns why.

    def _matmul(self, graph: ir.Graph, node: ir.Node) -> str | None:
        x, operand = _inputs(node, 2)
        weight = constant(operand)
        if weight is not None:
            if weight.ndim != 2:
                return f"weight has {weight.ndim} dimensions, a layer's has 2"
            if _rank(x) < 2:
                return "x is a vector or of unknown rank"
            name = layer_name(node, operand)
            form, pattern = best_form(weight.T)
            made = make_node(LinearOp(name, form), graph, x, output=node.outputs[0])
            self._done(graph, node, [made], pattern)
            return None
        x, operand = operand, x
        weight = constant(operand)
        assert weight is not None
        if weight.ndim != 2 or _rank(x) < 2:
            return "constant on the left with a batched or unknown operand"
        form, pattern = best_form(weight)
        if not pattern.is_block_sparse:
            return f"constant on the left, {pattern.reason}: transposing x would not pay"
        name = layer_name(node, operand)
        turn = _swap_last(x)
        made = make_node(LinearOp(name, form), graph, turn.outputs[0])
        rows = turn.outputs[0].shape
        assert rows is not None
        made.outputs[0].shape = ir.Shape([*rows[:-1], weight.shape[0]])
        made.outputs[0].dtype = ir.DataType.FLOAT
        self._done(graph, node, [turn, made, _swap_last(made.outputs[0])], pattern, made)
        return None

    def _gemm(self, graph: ir.Graph, node: ir.Node) -> str | None:
        x, operand = _inputs(node, 2)
        weight = constant(operand)
        if weight is None:
            return "constant on the left of Gemm"
        alpha = node.attributes.get_float("alpha", 1.0)
        weight = weight if _flag(node, "transB") else weight.T
        weight = weight if alpha == 1.0 else (weight * np.float32(alpha)).astype(np.float32)
        name = layer_name(node, operand)
        new: list[ir.Node] = []
        if _flag(node, "transA"):
            new.append(_swap_last(x))
            x = new[0].outputs[0]
        form, pattern = best_form(weight)
        addend = node.inputs[2] if len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0)
        if addend is None or beta == 0.0:
            made = make_node(LinearOp(name, form), graph, x, output=node.outputs[0])
            self._done(graph, node, [*new, made], pattern, made)
            return None
        fitting = _addend_step(graph, name, addend, beta, len(weight), node.outputs[0])
        if fitting is not None:
            step, tensor = fitting
            op = LinearOp(name, form, (step,))
            made = make_node(op, graph, x, (tensor,), node.outputs[0])
            self._done(graph, node, [*new, made], pattern, made)
            return None
        made = make_node(LinearOp(name, form), graph, x, output=node.outputs[0])
        made.outputs[0].name = f"{name}.product"
        rest = _add_scaled(graph, made.outputs[0], addend, beta)
        self._done(graph, node, [*new, made, *rest], pattern, made)
        return None

    def _conv(self, graph: ir.Graph, node: ir.Node) -> str | None:
        x, operand = _inputs(node, 2)
        kernel = constant(operand)
        if kernel is None:
            return "the kernel is computed, not constant"
        if kernel.ndim != 4:
            return f"{kernel.ndim - 2}-D convolution, only 2-D ones are covered"
        if node.attributes.get_int("group", 1) != 1:
            return "depthwise convolution: too little work per channel for blocks"
        geometry = conv_geometry(node, x, (int(kernel.shape[2]), int(kernel.shape[3])))
        if isinstance(geometry, str):
            return geometry
        form, pattern = best_form(kernel.reshape(len(kernel), -1))
        bias = tuple(value for value in node.inputs[2:] if value is not None)
        op = LinearOp(layer_name(node, operand), form, ("bias",) * len(bias), geometry)
        made = make_node(op, graph, x, bias, node.outputs[0])
        self._done(graph, node, [made], pattern)
        return None

    def _done(
        self,
        graph: ir.Graph,
        old: ir.Node,
        new: list[ir.Node],
        pattern: BlockPattern,
        made: ir.Node | None = None,
    ) -> None:
        layer = made or new[-1]
        layer.metadata_props[FOUND_KEY] = pattern.to_json()
        replace(graph, [old], new)
        self.applied_to(layer.name or layer.op_type, pattern.reason)


def best_form(weight: Array) -> tuple[Weight, BlockPattern]:
    """W [out, in], which may be a view, as a block-sparse matrix where it has zero blocks."""
    pattern = detect_blocks(weight)
    if pattern.is_block_sparse:
        return BlockSparseMatrix.from_dense(weight, pattern.block), pattern
    return np.ascontiguousarray(weight), pattern


def _has_constant_operand(node: ir.Node) -> bool:
    """One factor is constant: a layer, not for example attention scores."""
    return sum(constant(value) is not None for value in node.inputs[:2]) == 1


def _weight_operand(node: ir.Node) -> ir.Value | None:
    return next((v for v in node.inputs[:2] if constant(v) is not None), None)


def _unfit(node: ir.Node) -> str | None:
    for value in node.inputs:
        if value is not None and value.dtype not in (ir.DataType.FLOAT, None):
            return f"{value.dtype} operand, only float32 layers are covered"
    weight = constant(_weight_operand(node))
    return "the weight is empty" if weight is not None and not weight.size else None


def _inputs(node: ir.Node, count: int) -> list[ir.Value]:
    values = [value for value in node.inputs[:count] if value is not None]
    assert len(values) == count  # the checker demands these inputs
    return values


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)


def _flag(node: ir.Node, name: str) -> bool:
    return bool(node.attributes.get_int(name, 0))


def _swap_last(x: ir.Value) -> ir.Node:
    """Transpose of the last two axes, with the shape that follows."""
    assert x.shape is not None
    perm = list(range(len(x.shape)))
    perm[-2:] = [perm[-1], perm[-2]]
    node = ir.Node("", "Transpose", [x], [ir.AttrInt64s("perm", perm)])
    node.outputs[0].shape = ir.Shape([x.shape[i] for i in perm])
    node.outputs[0].type = x.type
    return node


def _addend_step(
    graph: ir.Graph, name: str, addend: ir.Value, beta: float, out: int, y: ir.Value
) -> tuple[str, ir.Value] | None:
    """Gemm's C as an epilogue step and its tensor; None if it fits none."""
    array = constant(addend)
    if array is not None:
        if array.ndim <= 1 or array.shape[0] == 1:
            row = np.broadcast_to(array.reshape(-1), (out,))
            if beta == 1.0 and array.shape == (out,):
                return "bias", addend
            return "bias", add_initializer(graph, f"{name}.bias", (row * beta).astype(row.dtype))
        return None
    if beta == 1.0 and static_shape(addend) == (out,):
        return "bias", addend
    if beta == 1.0 and same_shape(addend, y):
        return "residual", addend
    return None


def _add_scaled(graph: ir.Graph, y: ir.Value, addend: ir.Value, beta: float) -> list[ir.Node]:
    """Nodes for y + beta C in plain ONNX."""
    nodes = []
    if beta != 1.0:
        factor = add_initializer(graph, "beta", np.array(beta, dtype=np.float32))
        nodes.append(ir.Node("", "Mul", [addend, factor]))
        addend = nodes[0].outputs[0]
        addend.type = y.type
    return [*nodes, ir.Node("", "Add", [y, addend])]


def conv_geometry(node: ir.Node, x: ir.Value, kernel: tuple[int, int]) -> ConvGeometry | str:
    """The convolution's geometry with ``auto_pad`` resolved, or why it cannot be."""
    attributes = node.attributes
    sh, sw = attributes.get_ints("strides", (1, 1))
    dh, dw = attributes.get_ints("dilations", (1, 1))
    mode = attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        top, left, bottom, right = attributes.get_ints("pads", (0, 0, 0, 0))
        return ConvGeometry(kernel, (sh, sw), (top, left, bottom, right), (dh, dw))
    if mode == "VALID":
        return ConvGeometry(kernel, (sh, sw), (0, 0, 0, 0), (dh, dw))
    sizes = [None, None] if x.shape is None or len(x.shape) != 4 else list(x.shape[2:])
    begin, end = [], []
    for size, k, s, d in zip(sizes, kernel, (sh, sw), (dh, dw), strict=True):
        reach = d * (k - 1) + 1
        if s == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max((-(-size // s) - 1) * s + reach - size, 0)
        else:
            return f"auto_pad={mode} with stride {s} needs a static image size"
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return ConvGeometry(kernel, (sh, sw), (begin[0], begin[1], end[0], end[1]), (dh, dw))

"""Layers of a quantised model become dialect ops that multiply in int8, with their int8 weights.

    static    MatMul|Gemm( DequantizeLinear(q, s, z), DequantizeLinear(W int8, scale) )
              -> QuantizedDense|BlockSparseMatMul(q, W, scale)
    dynamic   q, s, z = DynamicQuantizeLinear(x);  MatMulInteger(q, W int8, z) -> Cast -> Mul by
              (s scale)  ->  QuantizedDense|BlockSparseMatMul(x, W, scale), activation ``tensor``

W is symmetric (zero point 0), with one scale or one for each output. Zero blocks are found in the
int8 numbers. Bias and activations follow as epilogue, see fuse_epilogues.py; the QuantizeLinear
before and after are taken in by requantize.py.

Runs before constants are folded, which would widen the weights. Refuses: weights that are
asymmetric, not int8 or quantised along the inputs; x quantised per channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from bscompile.dialect import FOUND_KEY, LinearOp, Weight, make_node
from bscompile.dialect.quantization import Quantization
from bscompile.formats import BlockSparseMatrix
from bscompile.formats.detect import BlockPattern, detect_blocks
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import (
    constant,
    is_op,
    layer_name,
    only_reader,
    replace,
    scalar,
    static_shape,
)

Array = npt.NDArray[Any]

_INTEGERS = {ir.DataType.UINT8: "uint8", ir.DataType.INT8: "int8"}


def is_quantized_model(model: ir.Model) -> bool:
    """Whether a model was made by a quantizer, as far as this pass is concerned."""
    marks = ("DequantizeLinear", "MatMulInteger")
    return any(is_op(node, *marks) for node in model.graph)


class RecogniseQuantized(GraphPass):
    """Quantised MatMul and Gemm -> QuantizedDense/BlockSparse MatMul."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite every layer of the main graph."""
        before = len(self.applied)
        for node in list(model.graph):
            reason: str | None = None
            if is_op(node, "MatMul", "Gemm") and _reads_quantized_weight(node):
                reason = self._static(model.graph, node)
            elif is_op(node, "MatMulInteger"):
                reason = self._dynamic(model.graph, node)
            if reason:
                self.refused_for(layer_name(node), reason)
        if len(self.applied) > before:
            common.RemoveUnusedNodesPass()(model)  # what dequantised x, if nobody else reads it
        return len(self.applied) > before

    def _static(self, graph: ir.Graph, node: ir.Node) -> str | None:
        left, right = (_dequantize(value) for value in node.inputs[:2])
        assert left is not None
        assert right is not None
        if is_op(node, "Gemm") and _unusual_gemm(node):
            return "a Gemm that scales or transposes x"
        turned = bool(node.attributes.get_int("transB", 0))
        weight = _weight(right, turned)
        if isinstance(weight, str):
            return weight
        q = left.inputs[0]
        s, z = scalar(left.inputs[1]), scalar(_input(left, 2)) if _input(left, 2) else 0.0
        if q is None or q.dtype not in _INTEGERS or s is None or z is None:
            return "x is not quantised with one constant scale to 8 bits"
        numbers, scale = weight
        dtype = _INTEGERS[q.dtype]
        ends = Quantization(scale, "static", dtype, dtype, np.float32(s).item(), int(z))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        steps: tuple[str, ...] = ()
        tensors: tuple[ir.Value, ...] = ()
        if bias is not None:
            if _shape_of(bias) != (len(numbers),):
                return "the addend of Gemm is no bias"
            steps, tensors = ("bias",), (bias,)
        name = layer_name(node, right.inputs[0])
        self._replace(graph, [node], name, numbers, ends, q, steps, tensors)
        return None

    def _dynamic(self, graph: ir.Graph, node: ir.Node) -> str | None:
        q, operand = node.inputs[:2]
        source = None if q is None else q.producer()
        numbers = constant(operand)
        if source is None or not is_op(source, "DynamicQuantizeLinear"):
            return "x is not quantised by DynamicQuantizeLinear"
        if numbers is None or numbers.ndim != 2 or numbers.dtype != np.int8:
            return "the weight is not a constant int8 matrix"
        if _input(node, 2) is not source.outputs[2] or not _all_zero(_input(node, 3)):
            return "the weight has a zero point"
        cast = only_reader(node.outputs[0])
        product = None if cast is None else only_reader(cast.outputs[0])
        if not is_op(cast, "Cast") or not is_op(product, "Mul"):
            return "its integer sums are not scaled at once"
        assert cast is not None
        assert product is not None
        other = next(v for v in product.inputs if v is not cast.outputs[0])
        scale = _scale_times(other, source.outputs[1])
        if scale is None or scale.size not in (1, numbers.shape[1]):
            return "its scale is not x's times a constant"
        scale = np.broadcast_to(scale.reshape(-1), (numbers.shape[1],)).astype(np.float32)
        x = source.inputs[0]
        assert x is not None
        ends = Quantization(np.ascontiguousarray(scale), "tensor")
        weight = np.ascontiguousarray(numbers.T)
        self._replace(graph, [node, cast, product], layer_name(node, operand), weight, ends, x)
        return None

    def _replace(
        self,
        graph: ir.Graph,
        old: list[ir.Node],
        name: str,
        numbers: Array,
        ends: Quantization,
        x: ir.Value,
        steps: tuple[str, ...] = (),
        tensors: tuple[ir.Value, ...] = (),
    ) -> None:
        form, pattern = _best_form(numbers)
        op = LinearOp(name, form, steps, quantization=ends)
        made = make_node(op, graph, x, tensors, old[-1].outputs[0])
        made.metadata_props[FOUND_KEY] = pattern.to_json()
        replace(graph, old, [made])
        self.applied_to(name, f"int8 weight, x quantised {ends.activation}: {pattern.reason}")


def _reads_quantized_weight(node: ir.Node) -> bool:
    """Whether both operands are dequantised, and the second from a constant."""
    left, right = (_dequantize(value) for value in node.inputs[:2])
    return left is not None and right is not None and constant(right.inputs[0]) is not None


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    producer = None if value is None else value.producer()
    return producer if is_op(producer, "DequantizeLinear") else None


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _all_zero(value: ir.Value | None) -> bool:
    array = np.zeros(1) if value is None else constant(value)
    return array is not None and not array.any()


def _unusual_gemm(node: ir.Node) -> bool:
    attributes = node.attributes
    plain = attributes.get_float("alpha", 1.0) == 1.0 and attributes.get_float("beta", 1.0) == 1.0
    return not plain or bool(attributes.get_int("transA", 0))


def _weight(node: ir.Node, turned: bool) -> tuple[Array, Array] | str:
    """(int8 numbers [out, in], scale float32 [out]) of a dequantised weight, or why not."""
    numbers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    if numbers is None or numbers.ndim != 2 or numbers.dtype != np.int8:
        return "the weight is not a constant int8 matrix"
    if scale is None or not _all_zero(_input(node, 2)):
        return "the weight has a zero point"
    numbers = np.ascontiguousarray(numbers if turned else numbers.T)
    axis = node.attributes.get_int("axis", 1) % 2
    if scale.size != 1 and (axis != (0 if turned else 1) or scale.shape != (len(numbers),)):
        return "the weight's scales belong to its inputs"
    scales = np.broadcast_to(scale.reshape(-1), (len(numbers),)).astype(np.float32)
    return numbers, np.ascontiguousarray(scales)


def _scale_times(value: ir.Value | None, scale: ir.Value) -> Array | None:
    """The constant c where value = scale c."""
    producer = None if value is None else value.producer()
    if value is scale:
        return np.ones(1, np.float32)
    if not is_op(producer, "Mul"):
        return None
    assert producer is not None
    others = [v for v in producer.inputs if v is not scale]
    return constant(others[0]) if len(others) == 1 else None


def _shape_of(value: ir.Value) -> tuple[int, ...] | None:
    shape = static_shape(value)
    if shape is None and (producer := _dequantize(value)) is not None:
        shape = static_shape(producer.inputs[0])
    return shape


def _best_form(numbers: Array) -> tuple[Weight, BlockPattern]:
    pattern = detect_blocks(numbers)
    if pattern.is_block_sparse:
        return BlockSparseMatrix.from_dense(numbers, pattern.block), pattern
    return numbers, pattern

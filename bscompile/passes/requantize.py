"""A quantised layer takes in the QuantizeLinear after it, and the one before it that is left.

    Quantized...MatMul -> QuantizeLinear(s', z')     ->   one op with y in 8 bits
    QuantizeLinear(s, z) -> Quantized...MatMul       ->   one op that quantises x itself

First all that follow: between two layers eight bits move then. Scales and zero points are constant
numbers. Runs after the epilogue is fused: quantising comes last of all. Refuses: other readers,
scales per channel.
"""

from __future__ import annotations

from dataclasses import replace as with_changes

import numpy as np
import onnx_ir as ir

from bscompile.dialect import FOUND_KEY, LinearOp, is_quantized, make_node, read_node, tensor_inputs
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import is_op, only_reader, replace, scalar

_INTEGERS = {ir.DataType.UINT8: "uint8", ir.DataType.INT8: "int8"}


class Requantize(GraphPass):
    """Quantised layer and its neighbouring QuantizeLinear -> quantised layer."""

    def rewrite(self, model: ir.Model) -> bool:
        """Take in what follows each layer, then what stands before."""
        for step in (self._after, self._before):
            for node in list(model.graph):
                if is_quantized(node):
                    step(model.graph, node)
        return bool(self.applied)

    def _after(self, graph: ir.Graph, node: ir.Node) -> None:
        reader = only_reader(node.outputs[0])
        if not is_op(reader, "QuantizeLinear"):
            return
        assert reader is not None
        op = read_node(node)
        scale, zero, dtype = _ends(reader)
        if scale is None or zero is None or dtype not in _INTEGERS:
            self.refused_for(op.name, "its result is quantised with a scale per channel")
            return
        assert op.quantization is not None
        ends = with_changes(
            op.quantization, y_dtype=_INTEGERS[dtype], y_scale=scale, y_zero=int(zero)
        )
        made = _make(graph, node, with_changes(op, quantization=ends), node.inputs[0], reader)
        replace(graph, [node, reader], [made])
        self.applied_to(op.name, f"gives {_INTEGERS[dtype]}")

    def _before(self, graph: ir.Graph, node: ir.Node) -> None:
        q = node.inputs[0]
        producer = None if q is None else q.producer()
        op = read_node(node)
        ends = op.quantization
        assert ends is not None
        if q is None or producer is None or ends.x_dtype == "float32":
            return
        if not is_op(producer, "QuantizeLinear") or only_reader(q) is not node:
            return
        x = producer.inputs[0]
        same = _ends(producer)[:2] == (ends.x_scale, float(ends.x_zero))
        if x is None or x.dtype != ir.DataType.FLOAT or not same:
            return
        op = with_changes(op, quantization=with_changes(ends, x_dtype="float32"))
        replace(graph, [producer, node], [_make(graph, node, op, x, node)])
        self.applied_to(op.name, "quantises x itself")


def _ends(node: ir.Node) -> tuple[float | None, float | None, ir.DataType | None]:
    """(scale, zero point, dtype) of a QuantizeLinear, None for what is no constant number."""
    scale = scalar(node.inputs[1])
    zero = scalar(node.inputs[2]) if len(node.inputs) > 2 else 0.0
    return None if scale is None else np.float32(scale).item(), zero, node.outputs[0].dtype


def _make(
    graph: ir.Graph, old: ir.Node, op: LinearOp, x: ir.Value | None, last: ir.Node
) -> ir.Node:
    """The node of ``op`` in place of ``old``, with the output of ``last``."""
    assert x is not None
    made = make_node(op, graph, x, tensor_inputs(old), last.outputs[0])
    made.metadata_props[FOUND_KEY] = old.metadata_props.get(FOUND_KEY, "{}")
    return made

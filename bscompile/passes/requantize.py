"""A quantised layer whose result is quantised next gives 8 bits itself.

    QuantizedDense|BlockSparseMatMul -> QuantizeLinear(s', z')   ->   one op with y in 8 bits

s' and z' are constant numbers. Runs after the epilogue is fused: quantising comes last of all.
Refuses: other readers of the result, scales per channel.
"""

from __future__ import annotations

from dataclasses import replace as with_changes

import numpy as np
import onnx_ir as ir

from bscompile.dialect import (
    FOUND_KEY,
    is_quantized,
    make_node,
    read_node,
    tensor_inputs,
)
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import is_op, only_reader, replace, scalar

_INTEGERS = {ir.DataType.UINT8: "uint8", ir.DataType.INT8: "int8"}


class Requantize(GraphPass):
    """Quantised layer + QuantizeLinear -> quantised layer."""

    def rewrite(self, model: ir.Model) -> bool:
        """Take in every QuantizeLinear that follows a quantised layer."""
        for node in list(model.graph):
            if not is_quantized(node):
                continue
            reader = only_reader(node.outputs[0])
            if not is_op(reader, "QuantizeLinear"):
                continue
            assert reader is not None
            op = read_node(node)
            scale = scalar(reader.inputs[1])
            zero = scalar(reader.inputs[2]) if len(reader.inputs) > 2 else 0.0
            dtype = reader.outputs[0].dtype
            if scale is None or zero is None or dtype not in _INTEGERS:
                self.refused_for(op.name, "its result is quantised with a scale per channel")
                continue
            assert op.quantization is not None
            ends = with_changes(
                op.quantization,
                y_dtype=_INTEGERS[dtype],
                y_scale=np.float32(scale).item(),
                y_zero=int(zero),
            )
            x = node.inputs[0]
            assert x is not None
            made = make_node(
                with_changes(op, quantization=ends),
                model.graph,
                x,
                tensor_inputs(node),
                reader.outputs[0],
            )
            made.metadata_props[FOUND_KEY] = node.metadata_props.get(FOUND_KEY, "{}")
            replace(model.graph, [node, reader], [made])
            self.applied_to(op.name, f"gives {_INTEGERS[dtype]}")
        return bool(self.applied)

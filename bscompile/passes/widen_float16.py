"""A half-precision graph computes in float32 inside; its inputs and outputs stay float16.

    input f16 -> Cast f32 -> ... -> Cast f16 -> output;   every f16 or bf16 initializer -> f32

Kernels and accumulators are float32, so nothing is rounded between layers: results are closer to
the exact ones than those of a float16 runtime. The model remembers that its weights came in two
bytes (``WAS_FLOAT16_KEY``); the last pass then marks every initializer whose numbers all fit
float16 exactly, so that the artifact stores it in two bytes again.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bscompile.passes.base import GraphPass

WAS_FLOAT16_KEY = "bscompile.was_float16"  # metadata of the model
STORAGE_KEY = "bscompile.storage"  # metadata of an initializer: dtype to store it in

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_HALF_CODES = tuple(dtype.value for dtype in _HALF)
_DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")


class WidenFloat16(GraphPass):
    """float16 and bfloat16 -> float32 inside the graph."""

    def rewrite(self, model: ir.Model) -> bool:
        """Widen everything between the graph's inputs and outputs."""
        graph = model.graph
        borders = [v for v in (*graph.inputs, *graph.outputs) if v.dtype in _HALF]
        weights = [v for g in model.graphs() for v in g.initializers.values() if v.dtype in _HALF]
        values = [v for n in graph.all_nodes() for v in n.outputs if v.dtype in _HALF]
        values += [v for g in graph.subgraphs() for v in g.inputs if v.dtype in _HALF]
        if not borders and not weights and not values:
            return False
        contract = {id(v): v.dtype for v in borders}
        for value in weights:
            _widen_initializer(value)
        for node in graph.all_nodes():
            _widen_attributes(node)
        for value in values:
            value.dtype = ir.DataType.FLOAT
        self._cast_inputs(graph)
        self._cast_outputs(graph, contract)
        model.metadata_props[WAS_FLOAT16_KEY] = "1"
        self.applied_to("graph", f"{len(weights)} half-precision weights, computed in float32")
        return True

    def _cast_inputs(self, graph: ir.Graph) -> None:
        for value in graph.inputs:
            if value.dtype not in _HALF:
                continue
            readers = list(value.uses())  # an output that is this input stays what it is
            cast = _cast(value, ir.DataType.FLOAT, f"{value.name}.float32")
            for use in readers:
                use.node.replace_input_with(use.idx, cast.outputs[0])
            if len(graph):
                graph.insert_before(graph[0], cast)
            else:
                graph.append(cast)

    def _cast_outputs(self, graph: ir.Graph, contract: dict[int, ir.DataType | None]) -> None:
        for i, value in enumerate(graph.outputs):
            dtype = contract.get(id(value))
            if dtype is None or value.is_graph_input():
                continue
            cast = _cast(value, dtype, value.name)
            value.name = f"{value.name}.float32"
            graph.append(cast)
            graph.outputs[i] = cast.outputs[0]


def mark_storage(model: ir.Model) -> None:
    """Mark the initializers of a once half-precision model that two bytes hold exactly."""
    if WAS_FLOAT16_KEY not in model.metadata_props:
        return
    for value in model.graph.initializers.values():
        if value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        array = value.const_value.numpy()
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float16)
        if np.array_equal(narrow.astype(np.float32), array):
            value.metadata_props[STORAGE_KEY] = "float16"


def _cast(value: ir.Value, dtype: ir.DataType, name: str | None) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype.value)])
    result = node.outputs[0]
    result.name, result.shape, result.dtype = name, value.shape, dtype
    return node


def _wide(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=name)


def _widen_initializer(value: ir.Value) -> None:
    assert value.const_value is not None
    value.const_value = _wide(value.const_value, value.name)
    value.dtype = ir.DataType.FLOAT


def _widen_attributes(node: ir.Node) -> None:
    """Tensors in attributes, and attributes that name a dtype."""
    for key, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype in _HALF:
                node.attributes[key] = ir.AttrTensor(key, _wide(tensor, tensor.name))
        elif key in _DTYPE_ATTRIBUTES and attribute.value in _HALF_CODES:
            node.attributes[key] = ir.AttrInt64(key, ir.DataType.FLOAT.value)

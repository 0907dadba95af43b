"""The skeleton becomes an ``onnx_ir.Model`` and gets its weights back."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir

from bscompile.errors import ModelError
from bscompile.importer.skeleton import Tensors
from bscompile.importer.text import one_line
from bscompile.passes.graph import bits_of

_LARGEST_VALUE_BYTES = 2**40


def attach(skeleton: onnx.ModelProto, tensors: Tensors, inputs: list[str]) -> ir.Model:
    """The skeleton in onnx_ir's form, with its weights and only its real inputs."""
    try:
        model = ir.serde.deserialize_model(skeleton)
    except Exception as error:
        raise ModelError(f"not a valid ONNX model: {one_line(error)}") from None
    graph = model.graph
    declared = {value.name: value for value in graph.inputs}
    graph.inputs[:] = [declared[name] for name in inputs]
    for name, tensor in tensors.items():
        value = declared.get(name) or graph.initializers.get(name)
        if value is None:  # small, and dropped because nothing reads it
            continue
        value.const_value = tensor
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        graph.register_initializer(value)
    for node in graph.all_nodes():
        for value in node.outputs:
            _check_size(value)
    for value in graph.inputs:
        _check_size(value)
    return model


def _check_size(value: ir.Value) -> None:
    """Refuse impossible sizes; exporters write -1 where they mean «any»."""
    shape, dtype = value.shape, value.dtype
    if shape is None or dtype is None:
        return
    if any(isinstance(d, int) and d < 0 for d in shape):
        shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in shape])
        value.shape = shape
    size = math.prod(d for d in shape if isinstance(d, int))
    if size * bits_of(dtype) // 8 > _LARGEST_VALUE_BYTES:
        raise ModelError(f"value {value.name!r}: shape {shape} is larger than any machine's memory")

"""The weights are set aside, so that the rest of the import handles kilobytes only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from bscompile.errors import ModelError
from bscompile.importer.tensors import (
    densify,
    inline_attributes,
    inline_tensor,
    read_tensor,
)
from bscompile.importer.text import one_line

Tensors = dict[str, ir.TensorProtocol]


def split_proto(proto: onnx.ModelProto, base: Path | None) -> tuple[onnx.ModelProto, Tensors]:
    """A copy of the model without initializers, and those, by name."""
    skeleton = onnx.ModelProto()
    _copy_fields(proto, skeleton, without="graph")
    _copy_fields(proto.graph, skeleton.graph, without="initializer")
    tensors: Tensors = {}

    def put(name: str, tensor: ir.TensorProtocol) -> None:
        if not name or name in tensors:
            raise ModelError(f"initializer name {name!r} is empty or used twice")
        tensors[name] = tensor

    for tensor in proto.graph.initializer:
        put(tensor.name, read_tensor(tensor, base))
    for sparse in proto.graph.sparse_initializer:
        put(sparse.values.name, densify(sparse, base))
    del skeleton.graph.sparse_initializer[:]
    for graph in graphs(skeleton):
        if len(graph.sparse_initializer):
            raise ModelError(f"graph {graph.name!r}: sparse initializer in a nested graph")
        for tensor in graph.initializer:
            inline_tensor(tensor, base)
        for node in graph.node:
            inline_attributes(node, base)
    for function in skeleton.functions:
        for node in function.node:
            inline_attributes(node, base)
    return skeleton, tensors


def split_ir(model: ir.Model) -> tuple[onnx.ModelProto, Tensors]:
    """The same for a model in onnx_ir's form."""
    copy = model.clone()
    tensors: Tensors = {}
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is None:
            raise ModelError(f"initializer {name!r} holds no tensor")
        tensors[name] = _loaded(name, value.const_value)
        if not value.is_graph_input():
            del copy.graph.initializers[name]
        value.const_value = None
    copy.graph.initializers.clear()
    return ir.serde.serialize_model(copy), tensors


def _loaded(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor with its external data mapped."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    try:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    except (OSError, ValueError) as error:
        raise ModelError(f"tensor {name!r}: external data: {one_line(error)}") from None


def _copy_fields(
    source: onnx.ModelProto | onnx.GraphProto,
    into: onnx.ModelProto | onnx.GraphProto,
    without: str,
) -> None:
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if field.is_repeated:
            getattr(into, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(into, field.name).CopyFrom(value)
        else:
            setattr(into, field.name, value)


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every nested one, those in function bodies included."""
    yield proto.graph
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    while nodes:
        for attribute in nodes.pop().attribute:
            for graph in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                yield graph
                nodes.extend(graph.node)


def drop_inputs_with_defaults(skeleton: onnx.ModelProto, tensors: Tensors) -> list[str]:
    """Initializers leave the graph's inputs: their value is what gets compiled.

    IR version 3 demands that every initializer is listed as an input. Later versions read that
    as «a default that callers may override»; those are returned, for the user to be told.
    """
    kept = [value for value in skeleton.graph.input if value.name not in tensors]
    fixed = [value.name for value in skeleton.graph.input if value.name in tensors]
    del skeleton.graph.input[:]
    skeleton.graph.input.extend(kept)
    return fixed if skeleton.ir_version >= 4 else []

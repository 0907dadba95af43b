"""Small questions that passes ask about a graph, and the one way in which they replace nodes."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import LAYER_KEY

Array = npt.NDArray[Any]


def constant(value: ir.Value | None) -> Array | None:
    """The value's array if it never changes, else None.

    Initializers that are also graph inputs are defaults, not constants.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds, else None."""
    array = constant(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(()))


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape if its rank and every dimension are known, else None."""
    if value is None or value.shape is None:
        return None
    dims = tuple(d for d in value.shape if isinstance(d, int))
    return dims if len(dims) == len(value.shape) else None


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values surely have one shape: equal numbers and equally named symbols."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        x == y and (isinstance(x, int) or x.value is not None)
        for x, y in zip(a.shape, b.shape, strict=True)
    )


def only_reader(value: ir.Value) -> ir.Node | None:
    """The single node that reads a value once; None if others do or it leaves the graph."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(uses)).node
    return node if node.graph is value_graph(value) else None


def value_graph(value: ir.Value) -> ir.Graph | ir.Function | None:
    """The graph in which a value lives."""
    producer = value.producer()
    return value.graph if producer is None else producer.graph


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether a node is one of these operators of the ONNX domain."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def bits_of(dtype: ir.DataType) -> int:
    """Bits of one element; strings count as a byte at least."""
    return 8 if dtype == ir.DataType.STRING else int(dtype.bitwidth)


def nbytes_of(tensor: ir.TensorProtocol | None) -> int:
    """Bytes of a tensor, 0 for none."""
    return 0 if tensor is None else (tensor.size * bits_of(tensor.dtype) + 7) // 8


def add_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register a constant under a name not yet taken among the initializers."""
    wanted, count = name, 1
    while name in graph.initializers:
        name, count = f"{wanted}.{count}", count + 1
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def replace(graph: ir.Graph, old: Sequence[ir.Node], new: Sequence[ir.Node]) -> None:
    """Put ``new`` where the last of ``old`` stands; the last output of each is one value.

    The old nodes' inputs that nothing reads any more leave the initializers with them, so that
    the memory of a replaced weight is free at once.
    """
    inputs = [value for node in old for value in node.inputs if value is not None]
    old_output, new_output = old[-1].outputs[0], new[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(
        graph, old[-1], list(old), list(new), [old_output], [new_output]
    )
    forget(graph, inputs)


def forget(graph: ir.Graph, values: Sequence[ir.Value]) -> None:
    """Take those values out of the initializers that are such and that nothing reads."""
    for value in values:
        unused = not value.uses() and not value.is_graph_output() and not value.is_graph_input()
        if unused and value.name is not None and graph.initializers.get(value.name) is value:
            del graph.initializers[value.name]
            value.const_value = None  # old nodes and values wait in cycles for the collector


def layer_name(node: ir.Node, weight: ir.Value | None = None) -> str:
    """What to call a layer: its module's path if the exporter kept it, else the node's name."""
    if LAYER_KEY in node.metadata_props:
        return node.metadata_props[LAYER_KEY]
    if weight is not None and weight.name and weight.name.endswith(".weight"):
        return weight.name.removesuffix(".weight")
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes:
        try:
            path = [str(part) for part in ast.literal_eval(scopes)]
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            path = []
        if len(path) >= 2 and path[-2]:
            return path[-2]
    name = node.name or (node.outputs[0].name if node.outputs else None) or node.op_type
    return name.strip("/").replace("/", ".")

"""Which operators can be compiled, asked before any work is done."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from bscompile.errors import ModelError
from bscompile.importer.unroll_recurrent import MAX_STEPS
from bscompile.passes.graph import is_op
from bscompile.targets.lowering.converters import Converter, find_converter
from bscompile.targets.lowering.limits import limit_of


def check_supported(model: ir.Model, *, folded: bool = False) -> None:
    """Refuse a model with an operator that cannot be compiled.

    Args:
        model: As imported, or as the passes left it.
        folded: Whether constants were folded. Before that an If may stand whose condition
            follows from constants and shapes: folding leaves only the branch that is taken.

    Raises:
        ModelError: naming the operator, its domain, its node and the opset.
    """
    standard = model.opset_imports.get("", 0)
    newest = onnx.defs.onnx_opset_version()
    if standard > newest:
        raise ModelError(
            f"the model uses opset {standard} of ai.onnx, and the newest known here is {newest}",
            "export it with an older opset, or update the onnx package",
        )
    _check_ends(model.graph)
    for node in _nodes(model.graph, folded):
        if is_op(node, "If"):
            raise ModelError(
                f"node {_label(node)} (If, opset {standard}) cannot be compiled: its condition "
                "is computed from data, and must be known while compiling"
            )
        opset = model.opset_imports.get(node.domain)
        if opset is None:
            raise ModelError(
                f"node {_label(node)} is of domain {node.domain!r}, which the model does not import"
            )
        if node.op_type == "Constant" and node.domain == "":
            continue
        converter_of(node, opset)
        limit = limit_of(node) if node.domain == "" else None
        if limit:
            raise ModelError(
                f"node {_label(node)} ({node.op_type}, opset {opset}) cannot be compiled: {limit}"
            )


def _nodes(graph: ir.Graph, folded: bool) -> Iterator[ir.Node]:
    """All nodes, nested ones included; not those of an If that folding may take away."""
    for node in graph:
        if is_op(node, "If") and not folded and not _depends_on_data(node.inputs[0]):
            continue
        yield node
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _nodes(attribute.as_graph(), folded)


def _depends_on_data(value: ir.Value | None) -> bool:
    """Whether more than the shapes of the graph's inputs decides about a value."""
    waiting, seen = [value], {value}
    while waiting:
        asked = waiting.pop()
        if asked is None or ir.convenience.get_const_tensor(asked) is not None:
            continue
        producer = asked.producer()
        if producer is None:
            return True
        if not is_op(producer, "Shape", "Size"):
            fresh = set(producer.inputs) - seen
            waiting += fresh
            seen |= fresh
    return False


def _check_ends(graph: ir.Graph) -> None:
    """Inputs and outputs are numpy arrays, and numpy has no bfloat16."""
    weights = set(graph.initializers)
    ends = [("input", v) for v in graph.inputs if v.name not in weights]
    for what, value in [*ends, *(("output", v) for v in graph.outputs)]:
        if value.dtype == ir.DataType.BFLOAT16:
            raise ModelError(
                f"{what} {value.name!r} holds bfloat16, which arrays of a caller cannot",
                f"cast it inside the model: export with a float32 {what}",
            )


def converter_of(node: ir.Node, opset: int) -> Converter:
    """The converter of one node.

    Raises:
        ModelError: there is none.
    """
    converter = find_converter(node.domain, node.op_type)
    if converter is not None:
        return converter
    domain = node.domain or "ai.onnx"
    hint = "write it with other operators when exporting, or add a converter"
    raise ModelError(
        f"operator {domain}::{node.op_type} (opset {opset}) of node {_label(node)} "
        "cannot be compiled",
        _RECURRENT if is_op(node, "GRU", "LSTM", "RNN") else hint,
    )


#: What is left of these after importer/unroll_recurrent.py.
_RECURRENT = (
    f"give the sequence a fixed length of at most {MAX_STEPS}, such as by --dim; lengths by batch "
    "entry, peepholes, clipping and unusual activations are not supported"
)


def _label(node: ir.Node) -> str:
    outputs = [v.name for v in node.outputs if v.name]
    return repr(node.name or (outputs[0] if outputs else node.op_type))

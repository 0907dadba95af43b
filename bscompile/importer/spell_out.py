"""Operators that ONNX defines by a function, written as that function's simpler operators."""

from __future__ import annotations

import onnx
import onnx.defs
import onnx.inliner

#: Operators for which no target has a kernel. Those with one (LayerNormalization, Softmax, Gelu)
#: and those that passes read (Swish) stay whole.
_SPELLED_OUT = frozenset({"Attention", "Celu", "CenterCropPad", "RotaryEmbedding", "SwiGLU"})
#: Of the local functions that stand for them until they are inlined.
_DOMAIN = "bscompile.spelled_out"


def spell_out(skeleton: onnx.ModelProto) -> onnx.ModelProto | None:
    """Replace operators by the functions that define them.

    Each node gets its function as a local one, which onnx then inlines. Its inliner could look
    the functions up by itself, but stops at a node that leaves out an optional input.

    Args:
        skeleton: Its types inferred, since some functions depend on those of the node's inputs.

    Returns:
        A new model, or None where there was nothing to replace or the type of an input that
        the function depends on is not known.
    """
    if not any(_is_asked(node) for node in skeleton.graph.node):
        return None
    spelled = onnx.ModelProto()
    spelled.CopyFrom(skeleton)
    types = _types(spelled.graph)
    opset = next(o.version for o in spelled.opset_import if o.domain in ("", "ai.onnx"))
    for place, node in enumerate(spelled.graph.node):
        if not _is_asked(node):
            continue
        if any(name and name not in types for name in node.input):
            return None
        function = _function_of(node, opset, types)
        function.domain, function.name = _DOMAIN, f"{node.op_type}_{place}"
        node.domain, node.op_type = function.domain, function.name
        spelled.functions.append(function)
    spelled.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    wanted = [(function.domain, function.name) for function in spelled.functions]
    ours = [key for key in wanted if key[0] == _DOMAIN]
    return onnx.inliner.inline_selected_functions(spelled, ours)


def _is_asked(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in _SPELLED_OUT


def _types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """The type of every value, by name."""
    types = {v.name: v.type for v in [*graph.input, *graph.value_info, *graph.output]}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return types


def _function_of(
    node: onnx.NodeProto, opset: int, types: dict[str, onnx.TypeProto]
) -> onnx.FunctionProto:
    """The function that defines a node; defaults of its attributes are written into the node."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    present = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        if name not in present and default.type != onnx.AttributeProto.UNDEFINED:
            node.attribute.append(default)
    if schema.has_context_dependent_function:
        inputs = [types[name].SerializeToString() if name else b"" for name in node.input]
        data = schema.get_context_dependent_function(node.SerializeToString(), inputs)
        function = onnx.FunctionProto.FromString(data)
    else:
        function = onnx.FunctionProto()
        function.CopyFrom(schema.function_body)
    for imported in function.opset_import:
        if imported.domain == "":
            imported.version = opset  # what it was checked against when its schema was written
    return function

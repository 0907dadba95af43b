"""Operators for which no target has a kernel, written as simpler ones.

Those that ONNX defines by a function become that function, those of com.microsoft what
microsoft_operators.py says. Each node gets its function as a local one, which onnx then inlines.
Its inliner could look up the standard ones by itself, but stops at a node that leaves out an
optional input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
import onnx.defs
import onnx.inliner
import onnx.shape_inference

from bscompile.importer import microsoft_operators as microsoft

#: Operators for which no target has a kernel. Those with one (LayerNormalization, Softmax, Gelu)
#: and those that passes read (Swish) stay whole.
_SPELLED_OUT = frozenset({"Attention", "Celu", "CenterCropPad", "RotaryEmbedding", "SwiGLU"})
#: Of the local functions that stand for them until they are inlined.
_DOMAIN = "bscompile.spelled_out"

_Types = Mapping[str, onnx.TypeProto]


def spell_out(skeleton: onnx.ModelProto) -> onnx.ModelProto | None:
    """Replace operators by the functions by which ONNX defines them.

    Args:
        skeleton: Its types inferred, since some functions depend on those of the node's inputs.

    Returns:
        A new model, or None where there was nothing to replace or the type of an input that
        the function depends on is not known.
    """
    types = _types(skeleton.graph)
    asked = [node for node in skeleton.graph.node if _is_asked(node)]
    if any(name and name not in types for node in asked for name in node.input):
        return None
    return _replaced(skeleton, _is_asked, _function_of) if asked else None


def spell_out_microsoft(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Replace operators of com.microsoft, whose results have no type before.

    Raises:
        ModelError: one has something that is not supported.
    """
    if not any(_is_microsoft(node) for node in skeleton.graph.node):
        return skeleton
    typed = onnx.shape_inference.infer_shapes(skeleton)
    return _replaced(typed, _is_microsoft, microsoft.function_of)


def _replaced(
    skeleton: onnx.ModelProto,
    asked: Callable[[onnx.NodeProto], bool],
    function_of: Callable[[onnx.NodeProto, _Types, int], onnx.FunctionProto],
) -> onnx.ModelProto:
    """A copy in which functions stand for the nodes asked for, inlined."""
    spelled = onnx.ModelProto()
    spelled.CopyFrom(skeleton)
    types = _types(spelled.graph)
    opset = next(o.version for o in spelled.opset_import if o.domain in ("", "ai.onnx"))
    ours = []
    for place, node in enumerate(spelled.graph.node):
        if not asked(node):
            continue
        function = function_of(node, types, opset)
        function.domain, function.name = _DOMAIN, f"{node.op_type}_{place}"
        if node.domain == microsoft.DOMAIN:
            function.node[0].name = node.name  # the layer, where there is one
            _keep_given(node)
        node.domain, node.op_type = function.domain, function.name
        spelled.functions.append(function)
        ours.append((function.domain, function.name))
    spelled.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return onnx.inliner.inline_selected_functions(spelled, ours)


def _keep_given(node: onnx.NodeProto) -> None:
    """Leave a node the inputs and outputs that it has, which is all that its function knows."""
    inputs, outputs = ([name for name in names if name] for names in (node.input, node.output))
    del node.input[:], node.output[:], node.attribute[:]
    node.input.extend(inputs)
    node.output.extend(outputs)


def _is_asked(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in _SPELLED_OUT


def _is_microsoft(node: onnx.NodeProto) -> bool:
    return node.domain == microsoft.DOMAIN and node.op_type in microsoft.SPELLINGS


def _types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """The type of every value, by name."""
    types = {v.name: v.type for v in [*graph.input, *graph.value_info, *graph.output]}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return types


def _function_of(node: onnx.NodeProto, types: _Types, opset: int) -> onnx.FunctionProto:
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

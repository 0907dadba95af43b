"""What cannot be compiled although its operator can: modes and dtypes, asked before any work.

TVM's converters pass these over in silence and compute something else.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

D = ir.DataType

#: What tensors may hold while the model runs.
DTYPES = frozenset(
    {D.FLOAT, D.FLOAT16, D.BFLOAT16, D.DOUBLE, D.BOOL}
    | {D.INT8, D.INT16, D.INT32, D.INT64, D.UINT8, D.UINT16, D.UINT32, D.UINT64}
)


#: Inputs that decide about shapes or loops, so that their values must be known when compiling.
_PARAMETERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("AffineGrid", "CumSum", "OneHot", "Split", "TopK"), (1,)),
    "MaxUnpool": (2,),
    "Pad": (1, 2, 3),
    "Resize": (1, 2, 3),
}


def parameter_limit(node: ir.Node, is_known: Callable[[ir.Value], bool]) -> str | None:
    """Why the values of a node's inputs stand against it, None where nothing does.

    Args:
        node: Of the standard domain.
        is_known: Whether the value of an input is known while compiling.
    """
    places = (1,) if node.op_type.startswith("Reduce") else _PARAMETERS.get(node.op_type, ())
    for place in places:
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is None or is_known(value):
            continue
        name = onnx.defs.get_schema(node.op_type).inputs[place].name
        return f"its input {name} is computed from data, and must be known while compiling"
    return None


def limit_of(node: ir.Node) -> str | None:
    """Why a node cannot be compiled, None where nothing speaks against it.

    Args:
        node: Of the standard domain; its constant inputs may hold any dtype, since what is
            computed from constants alone is computed while compiling.
    """
    asked = _LIMITS.get(node.op_type)
    return (asked(node) if asked else None) or _dtype_limit(node)


def _dtype_limit(node: ir.Node) -> str | None:
    if all(v is None or ir.convenience.get_const_tensor(v) is not None for v in node.inputs):
        return None
    for value in [*node.inputs, *node.outputs]:
        if value is not None and value.dtype is not None and value.dtype not in DTYPES:
            return f"{value.name!r} holds {value.dtype.name.lower()}, which no kernel computes with"
    return None


def _attribute(node: ir.Node, name: str) -> object:
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.value


def _batch_normalization(node: ir.Node) -> str | None:
    return "it is in training mode" if _attribute(node, "training_mode") else None


def _dropout(node: ir.Node) -> str | None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    tensor = ir.convenience.get_const_tensor(node.inputs[2])
    if tensor is not None and not tensor.numpy().any():
        return None
    return "it is, or may be, in training mode"


def _max_pool(node: ir.Node) -> str | None:
    indices = node.outputs[1] if len(node.outputs) > 1 else None
    wanted = indices is not None and (indices.is_graph_output() or bool(indices.uses()))
    return "its second output, the indices, is wanted" if wanted else None


def _top_k(node: ir.Node) -> str | None:
    value = node.inputs[0]
    unsigned = value is not None and value.dtype == ir.DataType.UINT64
    return "it sorts uint64 numbers" if unsigned else None


def _bit_shift(node: ir.Node) -> str | None:
    value = node.inputs[0]
    signed = value is not None and value.dtype is not None and value.dtype.is_signed()
    return "it shifts signed numbers" if signed else None


def _conv_transpose(node: ir.Node) -> str | None:
    asked = _attribute(node, "output_shape")
    return "it uses output_shape; give the pads instead" if asked else None


def _space_to_depth(node: ir.Node) -> str | None:
    return "its mode is not DCR" if _attribute(node, "mode") not in (None, "DCR") else None


def _roi_align(node: ir.Node) -> str | None:
    return "its mode is not avg" if _attribute(node, "mode") not in (None, "avg") else None


_LIMITS: dict[str, Callable[[ir.Node], str | None]] = {
    "BatchNormalization": _batch_normalization,
    "BitShift": _bit_shift,
    "ConvTranspose": _conv_transpose,
    "Dropout": _dropout,
    "MaxPool": _max_pool,
    "RoiAlign": _roi_align,
    "SpaceToDepth": _space_to_depth,
    "TopK": _top_k,
}

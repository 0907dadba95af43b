"""Operators that ONNX defines by a function, written as that function's simpler operators."""

from __future__ import annotations

import onnx
import onnx.defs
import onnx.inliner

#: Operators for which no target has a kernel. Those with one (LayerNormalization, Softmax, Gelu)
#: and those that passes read (Swish) stay whole.
_SPELLED_OUT = frozenset({"Attention", "Celu", "CenterCropPad", "RotaryEmbedding", "SwiGLU"})


def spell_out(skeleton: onnx.ModelProto) -> onnx.ModelProto | None:
    """Replace operators by the functions that define them.

    Args:
        skeleton: Its types inferred, since some functions depend on those of the node's inputs.

    Returns:
        A new model, or None where there was nothing to replace or onnx cannot write the function.
    """
    asked = {node.op_type for node in skeleton.graph.node if node.domain == ""} & _SPELLED_OUT
    if not asked:
        return None
    try:
        return onnx.inliner.inline_selected_functions(
            skeleton, [("", name) for name in sorted(asked)], inline_schema_functions=True
        )
    except RuntimeError:  # the type of an input is not known
        return None

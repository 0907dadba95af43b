"""onnx's C++ side: check, inline functions, raise the opset, infer shapes.

It sees a skeleton of kilobytes, whatever the model's size. Small tensors stay in the skeleton,
because shape inference reads them (Reshape's target, Slice's ends).
"""

from __future__ import annotations

import re

import onnx
import onnx.checker
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir

from bscompile.dialect import DOMAIN
from bscompile.errors import ModelError
from bscompile.importer.name_dimensions import name_dimensions
from bscompile.importer.skeleton import Tensors
from bscompile.importer.spell_out import spell_out, spell_out_microsoft
from bscompile.importer.text import one_line
from bscompile.importer.unroll_recurrent import unroll_recurrent
from bscompile.passes.graph import nbytes_of

# Bodies of our functions use Gelu, and a model may not mix versions of an operator.
LOWEST_OPSET_AFTER_IMPORT = 20
_SKELETON_TENSOR_BYTES = 1024


def declare(skeleton: onnx.ModelProto, tensors: Tensors) -> onnx.ModelProto:
    """Small tensors become initializers again, large ones inputs with a type and no data."""
    for name, tensor in tensors.items():
        if nbytes_of(tensor) <= _SKELETON_TENSOR_BYTES:
            small = ir.serde.serialize_tensor(tensor)
            small.name = name
            skeleton.graph.initializer.append(small)
        else:
            skeleton.graph.input.append(
                onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy())
            )
    skeleton.ir_version = max(skeleton.ir_version, 8)
    return skeleton


def normalise(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Check, inline local functions, raise the opset, infer shapes, spell operators out."""
    opset = next(o.version for o in skeleton.opset_import if o.domain in ("", "ai.onnx"))
    try:
        if not all(v.type.tensor_type.HasField("shape") for v in skeleton.graph.output):
            skeleton = onnx.shape_inference.infer_shapes(skeleton)  # the checker wants them
        onnx.checker.check_model(skeleton)
        if len(skeleton.functions):
            ours = [(f.domain, f.name) for f in skeleton.functions if f.domain == DOMAIN]
            skeleton = onnx.inliner.inline_selected_functions(skeleton, ours, exclude=True)
    except Exception as error:
        raise ModelError(f"not a valid ONNX model: {one_line(error)}") from None
    if opset < LOWEST_OPSET_AFTER_IMPORT:
        try:
            skeleton = onnx.version_converter.convert_version(skeleton, LOWEST_OPSET_AFTER_IMPORT)
        except Exception as error:
            raise ModelError(
                f"opset {opset} cannot be raised to {LOWEST_OPSET_AFTER_IMPORT}: {one_line(error)}",
                hint=f"export with opset_version={LOWEST_OPSET_AFTER_IMPORT}",
            ) from None
    skeleton = _infer_shapes(spell_out_microsoft(skeleton))
    unrolled = unroll_recurrent(skeleton)
    skeleton = skeleton if unrolled is None else _infer_shapes(unrolled)
    spelled = spell_out(skeleton)
    skeleton = skeleton if spelled is None else _infer_shapes(spelled)
    name_dimensions(skeleton)
    return skeleton


def _infer_shapes(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes of all values; an operator whose inputs do not fit is an error."""
    # Exporters write approximate shapes of intermediate values; onnx's own are exact.
    del skeleton.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(
            skeleton, check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:
        text = one_line(error)
    # onnx infers some operators by expanding them, which fails on sound models as well.
    culprit = re.search(r"\(op_type:(\w+)", text)
    if culprit and _is_expanded(culprit[1]):
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    raise ModelError(f"shapes or types do not fit: {text}")


def _is_expanded(op_type: str) -> bool:
    return onnx.defs.has(op_type) and bool(onnx.defs.get_schema(op_type).has_function)

"""Which converter an operator has: ours where there is one, else the one that TVM brings.

TVM's converters are used through its private map, in this file only; the version is pinned.
Ours replace those that lose symbolic sizes, read out of bounds, or do not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm.relax.frontend.onnx import onnx_frontend

from bscompile.dialect import DOMAIN
from bscompile.targets.lowering import (
    convolution,
    index_converters,
    linear,
    normalisation,
    number_converters,
    reduce_converters,
    shape_converters,
)

if TYPE_CHECKING:
    from bscompile.targets.lowering.importer import NodeView

Converter = Callable[["NodeView"], Any]

#: TVM keeps operators of com.microsoft in the same map as the standard ones.
_MICROSOFT = ("EmbedLayerNormalization", "MatMulInteger16")
#: Entries of TVM's map that are no operators of the standard domain, or are wrong for it.
_NOT_STANDARD = (
    "AllClassNMS",
    "Attention",
    "BiasGelu",
    "EmbedLayerNormalization",
    "FastGelu",
    "MatMulInteger16",
    "SkipLayerNormalization",
)

OWN: dict[tuple[str, str], Converter] = {
    ("", "Conv"): convolution.convert_grouped,
    ("", "ConstantOfShape"): shape_converters.constant_of_shape,
    ("", "Dropout"): number_converters.dropout,
    ("", "Expand"): shape_converters.expand,
    ("", "EyeLike"): number_converters.eye_like,
    ("", "Gather"): shape_converters.gather,
    ("", "GatherElements"): index_converters.gather_elements,
    ("", "GatherND"): index_converters.gather_nd,
    ("", "GroupNormalization"): normalisation.convert,
    ("", "InstanceNormalization"): normalisation.convert,
    ("", "IsInf"): number_converters.is_inf,
    ("", "LayerNormalization"): number_converters.layer_normalization,
    ("", "Max"): number_converters.maximum,
    ("", "Min"): number_converters.minimum,
    ("", "Mod"): number_converters.modulo,
    ("", "OneHot"): index_converters.one_hot,
    ("", "Pow"): number_converters.power,
    ("", "RMSNormalization"): number_converters.rms_normalization,
    ("", "Range"): shape_converters.range_,
    ("", "Reshape"): shape_converters.reshape,
    ("", "ScatterElements"): index_converters.scatter_elements,
    ("", "ScatterND"): index_converters.scatter_nd,
    ("", "Slice"): shape_converters.slice_,
    ("", "Swish"): number_converters.swish,
    (DOMAIN, "DenseMatMul"): linear.convert_matmul,
    (DOMAIN, "BlockSparseMatMul"): linear.convert_matmul,
    (DOMAIN, "KroneckerMatMul"): linear.convert_matmul,
    (DOMAIN, "QuantizedDenseMatMul"): linear.convert_matmul,
    (DOMAIN, "QuantizedBlockSparseMatMul"): linear.convert_matmul,
    (DOMAIN, "DenseConv"): convolution.convert_conv,
    (DOMAIN, "BlockSparseConv"): convolution.convert_conv,
    (DOMAIN, "KroneckerConv"): convolution.convert_conv,
}


def find_converter(domain: str, op_type: str) -> Converter | None:
    """The converter of an operator, None where there is none."""
    domain = "" if domain == "ai.onnx" else domain
    own = OWN.get((domain, op_type))
    if own is not None:
        return own
    if (domain, op_type) == ("", "Clip"):
        return _or_from_tvm(number_converters.clip)
    if domain == "" and op_type in reduce_converters.REDUCTIONS:
        return _or_from_tvm(reduce_converters.reduction)
    names = _MICROSOFT if domain == "com.microsoft" else ()
    tvm_map = onnx_frontend._get_convert_map()
    if domain == "":
        names = tuple(name for name in tvm_map if name not in _NOT_STANDARD)
    return from_tvm(op_type) if op_type in names else None


def _or_from_tvm(own: Converter) -> Converter:
    """TVM's converter where our own gives None."""

    def convert(view: NodeView) -> Any:
        result = own(view)
        return from_tvm(view.node.op_type)(view) if result is None else result

    return convert


def from_tvm(op_type: str) -> Converter:
    """TVM's own converter of an operator."""
    converter_class = onnx_frontend._get_convert_map()[op_type]

    def convert(view: NodeView) -> Any:
        inputs = [view.expr(i) for i in range(len(view.node.inputs))]
        function = converter_class.get_converter(view.standard_opset)
        return function(view.bb, onnx_frontend.onnx_input(inputs), view.attributes, [{}, {}])

    return convert

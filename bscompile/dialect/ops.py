"""Dialect nodes: what they mean as data, how they are written and read back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect.activations import is_activation
from bscompile.dialect.quantization import (
    Quantization,
    quantization_attributes,
    quantization_from,
)
from bscompile.formats import BlockSparseMatrix, KroneckerSum

Array = npt.NDArray[Any]
Weight = Array | BlockSparseMatrix | KroneckerSum

DOMAIN = "ai.bscompile"
VERSION = 1
TENSOR_STEPS = ("bias", "residual")

LAYER_KEY = "bscompile.layer"  # metadata: the layer's name in the user's model
FOUND_KEY = "bscompile.found"  # metadata: JSON, what the weight was recognised as
CHOICE_KEY = "bscompile.choice"  # metadata: JSON, the form chosen and why

CONV_KEYS = ("kernel_shape", "strides", "pads", "dilations")

_FORMS = {"dense": "Dense", "block_sparse": "BlockSparse", "kronecker": "Kronecker"}
_QUANTIZED = "Quantized"  # prefix of the op types whose weight is int8
WEIGHT_INPUTS = {
    "dense": ("weight",),
    "block_sparse": ("values", "indices", "indptr"),
    "kronecker": ("a", "b"),
}


@dataclass(frozen=True)
class ConvGeometry:
    """Where a 2-D convolution reads: NCHW, one group.

    Attributes:
        kernel: (kh, kw).
        strides: (sh, sw).
        pads: (top, left, bottom, right).
        dilations: (dh, dw).
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    @property
    def is_pointwise(self) -> bool:
        """Whether every window is one position: a matmul over the positions."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(oh, ow) for an input of height x width."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.strides, self.dilations
        top, left, bottom, right = self.pads
        return (
            (height + top + bottom - dh * (kh - 1) - 1) // sh + 1,
            (width + left + right - dw * (kw - 1) - 1) // sw + 1,
        )


@dataclass(frozen=True, eq=False)
class LinearOp:
    """One dialect node, read out: everything that its meaning depends on.

    Attributes:
        name: The layer's name, for people.
        weight: W [out, in] in one of its forms.
        epilogue: Steps after the product, in order; see the module's head.
        conv: The geometry of a convolution, None for a matmul.
        quantization: What the numbers of an int8 weight stand for; None for all others.
        precision: What is multiplied in, by name, where the weight's dtype does not say it:
            ``tf32``; else empty.
    """

    name: str
    weight: Weight
    epilogue: tuple[str, ...] = ()
    conv: ConvGeometry | None = None
    quantization: Quantization | None = None
    precision: str = ""

    def __post_init__(self) -> None:
        for step in self.epilogue:
            if step not in TENSOR_STEPS and not is_activation(step):
                raise ValueError(f"unknown epilogue step {step!r}")

    @property
    def form(self) -> str:
        """``dense``, ``block_sparse`` or ``kronecker``."""
        return form_of(self.weight)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of W."""
        return int(self.weight.shape[0]), int(self.weight.shape[1])

    @property
    def op_type(self) -> str:
        """The ONNX op type, such as ``BlockSparseMatMul``."""
        prefix = _QUANTIZED if self.quantization else ""
        return prefix + _FORMS[self.form] + ("Conv" if self.conv else "MatMul")

    def with_weight(self, weight: Weight) -> LinearOp:
        """The same layer with its weight in another form."""
        return replace(self, weight=weight)


def form_of(weight: Weight) -> str:
    """``dense``, ``block_sparse`` or ``kronecker``."""
    if isinstance(weight, BlockSparseMatrix):
        return "block_sparse"
    return "kronecker" if isinstance(weight, KroneckerSum) else "dense"


def dense_weight(weight: Weight) -> Array:
    """W [out, in] as a plain array, whatever its form."""
    return weight if isinstance(weight, np.ndarray) else weight.to_dense()


def is_dialect(node: ir.Node) -> bool:
    """Whether a node is one of ours."""
    return node.domain == DOMAIN


def is_quantized(node: ir.Node) -> bool:
    """Whether a node is one of ours with an int8 weight."""
    return is_dialect(node) and node.op_type.startswith(_QUANTIZED)


def is_float_layer(node: ir.Node) -> bool:
    """Whether a node is one of ours whose features passes may drop, merge and reorder.

    Not so the quantised ones: their scales and zero points belong to the weight as it is.
    """
    return is_dialect(node) and not is_quantized(node)


def make_node(
    op: LinearOp,
    graph: ir.Graph,
    x: ir.Value,
    tensors: tuple[ir.Value, ...] = (),
    output: ir.Value | None = None,
) -> ir.Node:
    """Make the node of an op and register its weight as initializers of ``graph``.

    The node is not inserted; its metadata holds the layer's name.

    Args:
        op: What the node means.
        graph: Where the new initializers live.
        x: The input, [..., in] or [n, c, h, w].
        tensors: One value for each ``bias`` and ``residual`` step, in order.
        output: A value whose name, type and shape the new output takes over; the caller then
            redirects its uses.
    """
    wanted = sum(step in TENSOR_STEPS for step in op.epilogue)
    if len(tensors) != wanted:
        raise ValueError(f"{op.name}: epilogue {op.epilogue} takes {wanted} tensors")
    weight_values = []
    for key, array in zip(weight_keys(op.op_type), _weight_arrays(op), strict=True):
        name = _fresh_name(graph, f"{op.name}.{key}")
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape = ir.Shape(array.shape)
        value.dtype = ir.DataType.from_numpy(array.dtype)
        graph.register_initializer(value)
        weight_values.append(value)
    attributes = [
        ir.AttrInt64s("shape", op.shape),
        ir.AttrString("epilogue", ",".join(op.epilogue)),
    ]
    if op.conv:
        attributes += [
            ir.AttrInt64s("kernel_shape", op.conv.kernel),
            ir.AttrInt64s("strides", op.conv.strides),
            ir.AttrInt64s("pads", op.conv.pads),
            ir.AttrInt64s("dilations", op.conv.dilations),
        ]
    if op.quantization:
        attributes += quantization_attributes(op.quantization)
    if op.precision:
        attributes.append(ir.AttrString("precision", op.precision))
    node = ir.Node(
        DOMAIN,
        op.op_type,
        [x, *weight_values, *tensors],
        attributes,
        name=op.name,
        version=VERSION,
        metadata_props={LAYER_KEY: op.name},
    )
    if output is not None:
        result = node.outputs[0]
        result.name, result.type, result.shape = output.name, output.type, output.shape
    return node


def read_node(node: ir.Node) -> LinearOp:
    """The meaning of a dialect node; its weights are read from the graph's initializers.

    Raises:
        ValueError: not a dialect node, or its weight is not constant or is misshapen.
    """
    form = node_form(node)
    arrays = []
    for key, value in zip(weight_keys(node.op_type), weight_inputs(node), strict=True):
        if value is None or value.const_value is None:
            raise ValueError(f"{node.name}: input {key} of {node.op_type} is not constant")
        arrays.append(value.const_value.numpy())
    out, inner = (int(v) for v in node.attributes["shape"].as_ints())
    weight: Weight
    if form == "dense":
        weight = arrays[0]
    elif form == "block_sparse":
        weight = BlockSparseMatrix(arrays[0], arrays[1], arrays[2], (out, inner))
    else:
        weight = KroneckerSum(arrays[0], arrays[1])
    conv = None
    if node.op_type.endswith("Conv"):
        ints = {k: tuple(v.as_ints()) for k, v in node.attributes.items() if k in CONV_KEYS}
        conv = ConvGeometry(
            kernel=_pair(ints["kernel_shape"]),
            strides=_pair(ints["strides"]),
            pads=(ints["pads"][0], ints["pads"][1], ints["pads"][2], ints["pads"][3]),
            dilations=_pair(ints["dilations"]),
        )
    epilogue = tuple(s for s in node.attributes["epilogue"].as_string().split(",") if s)
    name = node.metadata_props.get(LAYER_KEY) or node.name or node.op_type
    quantization = None
    if is_quantized(node):
        quantization = quantization_from(node.attributes, arrays[-1])
    named = node.attributes.get("precision")
    precision = named.as_string() if named is not None else ""
    return LinearOp(name, weight, epilogue, conv, quantization, precision)


def node_form(node: ir.Node) -> str:
    """The weight form that a dialect node's op type names.

    Raises:
        ValueError: not a dialect node.
    """
    if is_dialect(node):
        for form, prefix in _FORMS.items():
            if node.op_type.removeprefix(_QUANTIZED).startswith(prefix):
                return form
    raise ValueError(f"{node.domain}::{node.op_type} is not an operator of {DOMAIN}")


def weight_keys(op_type: str) -> tuple[str, ...]:
    """The names of an operator's weight inputs."""
    plain = op_type.removeprefix(_QUANTIZED)
    form = next(form for form, prefix in _FORMS.items() if plain.startswith(prefix))
    return WEIGHT_INPUTS[form] + (("scale",) if plain != op_type else ())


def weight_inputs(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """The node's weight inputs, without x and the epilogue's tensors.

    Raises:
        ValueError: not a dialect node.
    """
    node_form(node)
    return tuple(node.inputs[1 : 1 + len(weight_keys(node.op_type))])


def tensor_inputs(node: ir.Node) -> tuple[ir.Value, ...]:
    """The node's epilogue tensors, one for each ``bias`` and ``residual`` step, in order."""
    tail = node.inputs[1 + len(weight_inputs(node)) :]
    return tuple(value for value in tail if value is not None)


def _weight_arrays(op: LinearOp) -> tuple[Array, ...]:
    scale = () if op.quantization is None else (op.quantization.scale,)
    return _number_arrays(op.weight) + scale


def _number_arrays(weight: Weight) -> tuple[Array, ...]:
    if isinstance(weight, BlockSparseMatrix):
        return weight.values, weight.indices, weight.indptr
    if isinstance(weight, KroneckerSum):
        return weight.a, weight.b
    return (weight,)


def _fresh_name(graph: ir.Graph, wanted: str) -> str:
    name, count = wanted, 1
    while name in graph.initializers:
        name, count = f"{wanted}.{count}", count + 1
    return name


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]

"""The ``ai.bscompile`` operators: one layer meaning, six spellings.

==================  ==========================================  =========================
op                  weight inputs                               meaning of W [out, in]
==================  ==========================================  =========================
DenseMatMul         weight [out, in]                            itself
BlockSparseMatMul   values [nnzb, bh, bw], indices, indptr      BlockSparseMatrix
KroneckerMatMul     a [r, m1, n1], b [r, bh, bw]                Σᵢ aᵢ ⊗ bᵢ
Dense/BlockSparse/  as above, W [out, in/1 · kh · kw]           2-D convolution, one group
KroneckerConv
==================  ==========================================  =========================

Matmuls compute y[..., out] = x[..., in] Wᵀ; convolutions x [n, c, h, w] -> [n, out, oh, ow].
Then the epilogue runs, an ordered tuple of steps: ``bias`` (+ bias [out]), ``residual``
(+ a tensor of y's shape) and activations. The inputs of a node are x, the weight inputs, then
one input for each ``bias`` and ``residual`` step in order.

In a saved model every node names an ONNX function (domain, op type, overload) whose body is
plain ONNX, so any ONNX runtime opens and runs it; ``attach_functions`` writes those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.formats import BlockSparseMatrix, KroneckerSum

Array = npt.NDArray[Any]
Weight = Array | BlockSparseMatrix | KroneckerSum

DOMAIN = "ai.bscompile"
VERSION = 1
BODY_OPSET = 20  # the first with Gelu
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
TENSOR_STEPS = ("bias", "residual")

LAYER_KEY = "bscompile.layer"  # metadata: the layer's name in the user's model
FOUND_KEY = "bscompile.found"  # metadata: JSON, what the weight was recognised as
CHOICE_KEY = "bscompile.choice"  # metadata: JSON, the form chosen and why

_FORMS = {"dense": "Dense", "block_sparse": "BlockSparse", "kronecker": "Kronecker"}
_WEIGHT_INPUTS = {
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
    """

    name: str
    weight: Weight
    epilogue: tuple[str, ...] = ()
    conv: ConvGeometry | None = None

    def __post_init__(self) -> None:
        for step in self.epilogue:
            if step not in ACTIVATIONS + TENSOR_STEPS:
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
        return _FORMS[self.form] + ("Conv" if self.conv else "MatMul")

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


# ---------------------------------------------------------------- nodes: write and read


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
    for key, array in zip(_WEIGHT_INPUTS[op.form], _weight_arrays(op.weight), strict=True):
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
    form = next((f for f, prefix in _FORMS.items() if node.op_type.startswith(prefix)), None)
    if not is_dialect(node) or form is None:
        raise ValueError(f"{node.domain}::{node.op_type} is not an operator of {DOMAIN}")
    arrays = []
    for key, value in zip(_WEIGHT_INPUTS[form], weight_inputs(node), strict=True):
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
        ints = {k: tuple(v.as_ints()) for k, v in node.attributes.items() if k in _CONV_KEYS}
        conv = ConvGeometry(
            kernel=_pair(ints["kernel_shape"]),
            strides=_pair(ints["strides"]),
            pads=(ints["pads"][0], ints["pads"][1], ints["pads"][2], ints["pads"][3]),
            dilations=_pair(ints["dilations"]),
        )
    epilogue = tuple(s for s in node.attributes["epilogue"].as_string().split(",") if s)
    name = node.metadata_props.get(LAYER_KEY) or node.name or node.op_type
    return LinearOp(name, weight, epilogue, conv)


_CONV_KEYS = ("kernel_shape", "strides", "pads", "dilations")


def weight_inputs(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """The node's weight inputs, without x and the epilogue's tensors."""
    form = next(f for f, prefix in _FORMS.items() if node.op_type.startswith(prefix))
    return tuple(node.inputs[1 : 1 + len(_WEIGHT_INPUTS[form])])


def tensor_inputs(node: ir.Node) -> tuple[ir.Value, ...]:
    """The node's epilogue tensors, one for each ``bias`` and ``residual`` step, in order."""
    tail = node.inputs[1 + len(weight_inputs(node)) :]
    return tuple(value for value in tail if value is not None)


def _weight_arrays(weight: Weight) -> tuple[Array, ...]:
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


# ---------------------------------------------------------------- meaning in numpy


def apply_step(step: str, y: Array, tensor: Array | None, conv: bool) -> Array:
    """One epilogue step in the dtype of ``y``; ``tensor`` belongs to bias and residual."""
    if step == "bias":
        assert tensor is not None
        shaped: Array = tensor[:, None, None] if conv else tensor
        return y + shaped
    if step == "residual":
        assert tensor is not None
        return y + tensor
    if step == "relu":
        return np.maximum(y, 0)
    if step == "gelu":
        erf = np.vectorize(math.erf, otypes=[np.float64])
        return (0.5 * y * (1 + erf(y / math.sqrt(2)))).astype(y.dtype)
    if step == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
        return 0.5 * y * (1 + np.tanh(inner))
    if step == "silu":
        return y / (1 + np.exp(-np.clip(y, -700, None)))
    raise ValueError(f"unknown epilogue step {step!r}")


def evaluate(op: LinearOp, x: Array, tensors: tuple[Array, ...] = ()) -> Array:
    """The op's result in float64: the reference that kernels are checked against."""
    weight = dense_weight(op.weight).astype(np.float64)
    x = x.astype(np.float64)
    y = x @ weight.T if op.conv is None else _convolve(x, weight, op.conv)
    rest = list(tensors)
    for step in op.epilogue:
        tensor = rest.pop(0).astype(np.float64) if step in TENSOR_STEPS else None
        y = apply_step(step, y, tensor, conv=op.conv is not None)
    return y


def _convolve(x: Array, weight: Array, conv: ConvGeometry) -> Array:
    patches = im2col(x, conv)  # [n, c kh kw, oh, ow]
    return np.einsum("ok,nkhw->nohw", weight, patches)


def im2col(x: Array, conv: ConvGeometry) -> Array:
    """[n, c, h, w] -> [n, c·kh·kw, oh, ow]: the window under each output position."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilations
    top, left, bottom, right = conv.pads
    oh, ow = conv.output_size(x.shape[2], x.shape[3])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = [
        padded[:, :, i * dh : i * dh + sh * (oh - 1) + 1 : sh, j * dw :][
            :, :, :, : sw * (ow - 1) + 1 : sw
        ]
        for i in range(kh)
        for j in range(kw)
    ]
    stacked = np.stack(windows, axis=2)  # [n, c, kh kw, oh, ow]
    return stacked.reshape(x.shape[0], x.shape[1] * kh * kw, oh, ow)


# ---------------------------------------------------------------- meaning in plain ONNX


def attach_functions(model: ir.Model) -> int:
    """Give every dialect node its ONNX function and declare the domain.

    Returns:
        How many distinct functions the model now holds.
    """
    used: dict[tuple[str, str, str], ir.Function] = {}
    for node in model.graph.all_nodes():
        if is_dialect(node):
            node.overload = _overload(node)
            key = (DOMAIN, node.op_type, node.overload)
            if key not in used:
                used[key] = _function(node)
    for key in [k for k in model.functions if k[0] == DOMAIN]:
        del model.functions[key]
    model.functions.update(used)
    if used:
        model.opset_imports[DOMAIN] = VERSION
        model.ir_version = max(model.ir_version, 10)  # the first with function overloads
    return len(used)


def _overload(node: ir.Node) -> str:
    """A name for the function that encodes all that its body depends on."""
    parts = ["x".join(str(v) for v in node.attributes["shape"].as_ints())]
    weight = weight_inputs(node)[0]
    assert weight is not None
    assert weight.dtype is not None
    parts.append("x".join(str(v) for v in _static_shape(weight)))
    parts.append(str(weight.dtype))
    parts.append(node.attributes["epilogue"].as_string().replace(",", "-"))
    if node.op_type.endswith("Conv"):
        parts += ["x".join(map(str, node.attributes[key].as_ints())) for key in _CONV_KEYS]
    return "_".join(part for part in parts if part)


def _static_shape(value: ir.Value) -> list[int]:
    assert value.shape is not None
    return [int(d) for d in value.shape]  # type: ignore[arg-type]  # initializers are static


def _function(node: ir.Node) -> ir.Function:
    out, inner = (int(v) for v in node.attributes["shape"].as_ints())
    steps = [s for s in node.attributes["epilogue"].as_string().split(",") if s]
    form = next(f for f, prefix in _FORMS.items() if node.op_type.startswith(prefix))
    tensors = [f"t{i}" for i in range(sum(s in TENSOR_STEPS for s in steps))]
    inputs = ["x", *_WEIGHT_INPUTS[form], *tensors]
    first = weight_inputs(node)[0]
    assert first is not None
    body = _weight_body(form, _static_shape(first), (out, inner))
    if node.op_type.endswith("Conv"):
        kernel, strides, pads, dilations = (list(node.attributes[k].as_ints()) for k in _CONV_KEYS)
        channels = inner // (kernel[0] * kernel[1])
        body += [
            f"kshape = Constant<value_ints: ints = {[out, channels, *kernel]}>()",
            "w4 = Reshape(w, kshape)",
            f"y0 = Conv<kernel_shape: ints = {kernel}, strides: ints = {strides}, "
            f"pads: ints = {pads}, dilations: ints = {dilations}>(x, w4)",
        ]
        bias_shape = "[-1, 1, 1]"
    else:
        body += ["wt = Transpose<perm: ints = [1, 0]>(w)", "y0 = MatMul(x, wt)"]
        bias_shape = "[-1]"
    current, rest = "y0", list(tensors)
    for i, step in enumerate(steps):
        result = f"y{i + 1}"
        if step == "bias":
            body += [
                f"bshape{i} = Constant<value_ints: ints = {bias_shape}>()",
                f"bias{i} = Reshape({rest.pop(0)}, bshape{i})",
                f"{result} = Add({current}, bias{i})",
            ]
        elif step == "residual":
            body.append(f"{result} = Add({current}, {rest.pop(0)})")
        elif step == "silu":
            body += [f"s{i} = Sigmoid({current})", f"{result} = Mul({current}, s{i})"]
        else:
            call = {
                "relu": f"Relu({current})",
                "gelu": f"Gelu({current})",
                "gelu_tanh": f'Gelu<approximate: string = "tanh">({current})',
            }[step]
            body.append(f"{result} = {call}")
        current = result
    text = (
        f'<domain: "{DOMAIN}", overload: "{node.overload}", opset_import: ["": {BODY_OPSET}]>\n'
        f"{node.op_type} ({', '.join(inputs)}) => ({current})\n{{\n" + "\n".join(body) + "\n}"
    )
    import onnx.parser  # the text form is the shortest way to write a body that people can read

    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def _weight_body(form: str, first: list[int], shape: tuple[int, int]) -> list[str]:
    """Lines that compute w [out, in] from the weight inputs."""
    out, inner = shape
    if form == "dense":
        return ["w = Identity(weight)"]
    if form == "kronecker":
        rank, m1, n1 = first
        bh, bw = out // m1, inner // n1
        return [
            f"ashape = Constant<value_ints: ints = {[rank, m1, 1, n1, 1]}>()",
            f"bshape = Constant<value_ints: ints = {[rank, 1, bh, 1, bw]}>()",
            f"wshape = Constant<value_ints: ints = {[out, inner]}>()",
            "zero = Constant<value_ints: ints = [0]>()",
            "a5 = Reshape(a, ashape)",
            "b5 = Reshape(b, bshape)",
            "terms = Mul(a5, b5)",
            "summed = ReduceSum<keepdims: int = 0>(terms, zero)",
            "w = Reshape(summed, wshape)",
        ]
    _, bh, bw = first
    rows, cols = -(-out // bh), -(-inner // bw)
    return [
        # The block row of block j is the number of row ends at or before j.
        "nshape = Shape(indices)",
        "n0 = Squeeze(nshape)",
        "i0 = Constant<value_int: int = 0>()",
        "i1 = Constant<value_int: int = 1>()",
        "steps = Range(i0, n0, i1)",
        "axis1 = Constant<value_ints: ints = [1]>()",
        "column = Unsqueeze(steps, axis1)",
        "ends0 = Constant<value_ints: ints = [1]>()",
        f"ends1 = Constant<value_ints: ints = [{rows + 1}]>()",
        "ends = Slice(indptr, ends0, ends1)",
        "ends64 = Cast<to: int = 7>(ends)",
        "past = GreaterOrEqual(column, ends64)",
        "past64 = Cast<to: int = 7>(past)",
        "row = ReduceSum<keepdims: int = 0>(past64, axis1)",
        f"cols = Constant<value_int: int = {cols}>()",
        "base = Mul(row, cols)",
        "col64 = Cast<to: int = 7>(indices)",
        "flat = Add(base, col64)",
        "where = Unsqueeze(flat, axis1)",
        f"tshape = Constant<value_ints: ints = {[rows * cols, bh, bw]}>()",
        "zero1 = Constant<value_float: float = 0.0>()",
        "zerot = CastLike(zero1, values)",
        "empty = Expand(zerot, tshape)",
        "tiles = ScatterND(empty, where, values)",
        f"gshape = Constant<value_ints: ints = {[rows, cols, bh, bw]}>()",
        "grid = Reshape(tiles, gshape)",
        "turned = Transpose<perm: ints = [0, 2, 1, 3]>(grid)",
        f"pshape = Constant<value_ints: ints = {[rows * bh, cols * bw]}>()",
        "padded = Reshape(turned, pshape)",
        "c0 = Constant<value_ints: ints = [0, 0]>()",
        f"c1 = Constant<value_ints: ints = {[out, inner]}>()",
        "w = Slice(padded, c0, c1)",
    ]

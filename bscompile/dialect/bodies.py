"""The dialect's meaning in plain ONNX: a function for every distinct node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bscompile.dialect.activations import spelled_out
from bscompile.dialect.ops import (
    CONV_KEYS,
    DOMAIN,
    TENSOR_STEPS,
    VERSION,
    is_dialect,
    is_quantized,
    node_form,
    weight_inputs,
    weight_keys,
)
from bscompile.dialect.quantization import quantization_from
from bscompile.dialect.quantized_bodies import quantize_lines, requantize_lines

LOWEST_OPSET = 20  # the first with Gelu
_ONE = np.ones(1, np.float32)  # for scales where they do not matter


def attach_functions(model: ir.Model) -> int:
    """Give every dialect node its ONNX function and declare the domain.

    Bodies speak the model's own opset: ONNX wants one version of an operator in one model.

    Returns:
        How many distinct functions the model now holds.
    """
    used: dict[tuple[str, str, str], ir.Function] = {}
    opset = max(model.opset_imports.get("", LOWEST_OPSET), LOWEST_OPSET)
    for node in model.graph.all_nodes():
        if is_dialect(node):
            node.overload = _overload(node)
            key = (DOMAIN, node.op_type, node.overload)
            if key not in used:
                used[key] = _function(node, opset)
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
        parts += ["x".join(map(str, node.attributes[key].as_ints())) for key in CONV_KEYS]
    if is_quantized(node):
        parts += [str(value) for value in quantization_from(node.attributes, _ONE).ends]
    return "_".join(part for part in parts if part)


def _static_shape(value: ir.Value) -> list[int]:
    assert value.shape is not None
    return [int(d) for d in value.shape]  # type: ignore[arg-type]  # initializers are static


def _function(node: ir.Node, opset: int) -> ir.Function:
    out, inner = (int(v) for v in node.attributes["shape"].as_ints())
    steps = [s for s in node.attributes["epilogue"].as_string().split(",") if s]
    form = node_form(node)
    tensors = [f"t{i}" for i in range(sum(s in TENSOR_STEPS for s in steps))]
    keys = weight_keys(node.op_type)
    inputs = ["x", *keys, *tensors]
    first = weight_inputs(node)[0]
    assert first is not None
    body, x = [], "x"
    if first.dtype != ir.DataType.FLOAT:
        narrow = [key for key in keys if key in ("weight", "values", "a", "b")]
        inputs = [f"{name}_narrow" if name in narrow else name for name in inputs]
        body += [f"{key} = Cast<to: int = 1>({key}_narrow)" for key in narrow]
    body += _weight_body(form, _static_shape(first), (out, inner))
    quantization = quantization_from(node.attributes, _ONE) if is_quantized(node) else None
    if quantization is not None:
        lines, x = quantize_lines(quantization)
        body += lines
    if node.op_type.endswith("Conv"):
        kernel, strides, pads, dilations = (list(node.attributes[k].as_ints()) for k in CONV_KEYS)
        channels = inner // (kernel[0] * kernel[1])
        body += [
            f"kshape = Constant<value_ints: ints = {[out, channels, *kernel]}>()",
            "w4 = Reshape(w, kshape)",
            (
                f"y0 = Conv<kernel_shape: ints = {kernel}, strides: ints = {strides}, "
                f"pads: ints = {pads}, dilations: ints = {dilations}>(x, w4)"
            ),
        ]
        bias_shape = "[-1, 1, 1]"
    else:
        body += ["wt = Transpose<perm: ints = [1, 0]>(w)", f"y0 = MatMul({x}, wt)"]
        bias_shape = "[-1]"
    if quantization is not None:
        body += ["scaled = Mul(y0, scale)"]
    current, rest = "y0" if quantization is None else "scaled", list(tensors)
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
        else:
            body += spelled_out(step, current, result, i)
        current = result
    if quantization is not None:
        lines, current = requantize_lines(quantization, current)
        body += lines
    text = (
        f'<domain: "{DOMAIN}", overload: "{node.overload}", opset_import: ["": {opset}]>\n'
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

"""The dialect's operators: build the chosen kernel, pack its weight, call it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from tvm import relax, te, tirx

from bscompile.dialect import CHOICE_KEY, ConvGeometry, LinearOp, read_node, weight_inputs
from bscompile.dialect.precision import kernel_weight, precision_of
from bscompile.errors import TargetError
from bscompile.targets.base import Config, Kernel, KernelTemplate, Problem, problem_of
from bscompile.targets.lowering.shape_converters import product, reshaped, shape_of

if TYPE_CHECKING:
    from bscompile.targets.lowering.importer import Importer, NodeView

#: TVM's fusion leaves functions with this pattern alone: kernels come scheduled.
_OPAQUE = 8


def convert_matmul(view: NodeView) -> Any:
    """Y [..., n] = epilogue(x [..., k] Wᵀ): the kernel sees x as [m, k]."""
    op = read_node(view.node)
    x = view.expr(0)
    *leading, inner = shape_of(x)
    n, k = op.shape
    if not (isinstance(inner, tirx.IntImm) and int(inner.value) == k):
        raise ValueError(f"its weight takes {k} inputs, and x ends in {inner}")
    m = product(leading)
    rows = reshaped(view.bb, x, [m, k])
    tensors = [
        expr if step == "bias" else reshaped(view.bb, expr, [m, n])
        for step, expr in _epilogue_tensors(view, op)
    ]
    y = _call(view, op, rows, m, tensors)
    return reshaped(view.bb, y, [*leading, tirx.const(n, "int64")])


def convert_conv(view: NodeView) -> Any:
    """Y [b, n, oh, ow] from x [b, c, h, w]: a matmul over the windows, m = b·oh·ow."""
    op = read_node(view.node)
    conv = op.conv
    assert conv is not None
    x = view.expr(0)
    batch, _, height, width = shape_of(x)
    n, k = op.shape
    oh, ow = conv.output_size(height, width)
    m = product([batch, oh, ow])
    bb = view.bb
    windows = bb.emit_te(lambda image: _windows(image, conv), x, primfunc_name_hint="im2col")
    rows = reshaped(bb, windows, [m, k])
    tensors = []
    for step, expr in _epilogue_tensors(view, op):
        if step == "residual":
            expr = bb.emit(relax.op.permute_dims(expr, [0, 2, 3, 1]))
            expr = reshaped(bb, expr, [m, n])
        tensors.append(expr)
    y = _call(view, op, rows, m, tensors)
    image = reshaped(bb, y, [batch, oh, ow, tirx.const(n, "int64")])
    return relax.op.permute_dims(image, [0, 3, 1, 2])


def _windows(x: te.Tensor, conv: ConvGeometry) -> te.Tensor:
    """X [b, c, h, w] -> [b, oh, ow, c, kh, kw]: what each output position reads."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilations
    top, left, bottom, right = conv.pads
    batch, channels, height, width = x.shape
    oh, ow = conv.output_size(height, width)

    def element(b: Any, i: Any, j: Any, c: Any, p: Any, q: Any) -> Any:
        row, column = i * sh + p * dh - top, j * sw + q * dw - left
        value = x[b, c, row, column]
        tests = []
        if top:
            tests.append(row >= 0)
        if bottom:
            tests.append(row < height)
        if left:
            tests.append(column >= 0)
        if right:
            tests.append(column < width)
        if not tests:
            return value
        return tirx.if_then_else(tirx.all(*tests), value, tirx.const(0, x.dtype))

    return te.compute((batch, oh, ow, channels, kh, kw), element, name="im2col")


def _epilogue_tensors(view: NodeView, op: LinearOp) -> list[tuple[str, Any]]:
    steps = [step for step in op.epilogue if step in ("bias", "residual")]
    start = 1 + len(weight_inputs(view.node))
    return [(step, view.expr(start + i)) for i, step in enumerate(steps)]


def _call(view: NodeView, op: LinearOp, rows: Any, m: Any, tensors: list[Any]) -> Any:
    """Emit the kernel's call; layers with the same weight and choice share its parameters."""
    importer = view.importer
    static_m = int(m.value) if isinstance(m, tirx.IntImm) else None
    precision = precision_of(op.weight)
    problem = problem_of(op, static_m, precision, importer.context.typical_rows)
    template, config = _choice(view.node, problem, importer)
    key = (
        tuple(weight_inputs(view.node)),
        template.name,
        tuple(sorted(config.items())),
        problem,
    )
    if key not in importer.shared:
        kernel = template.build(problem, kernel_weight(op), config, importer.context.hardware)
        importer.shared[key] = _register(importer, op, kernel)
    function, operands = importer.shared[key]
    result = relax.TensorType([m, tirx.const(problem.n, "int64")], problem.y_dtype)
    return view.bb.emit(relax.call_tir(function, [rows, *operands, *tensors], result))


def _register(importer: Importer, op: LinearOp, kernel: Kernel) -> tuple[Any, list[Any]]:
    prim_func = kernel.prim_func.with_attr("op_pattern", _OPAQUE)
    prim_func = prim_func.with_attr("tirx.is_scheduled", True).without_attr("global_symbol")
    # The builder gives structurally equal functions one name, so equal layers share their code.
    function = importer.bb.add_func(prim_func, f"{op.form}_matmul")
    operands = [importer.parameter(f"{op.name}.{s}", array) for s, array in kernel.operands]
    return function, operands


def _choice(node: ir.Node, problem: Problem, importer: Importer) -> tuple[KernelTemplate, Config]:
    """The template and configuration that the choose-form pass wrote, or the first that fits."""
    target, hardware = importer.context.target, importer.context.hardware
    written = node.metadata_props.get(CHOICE_KEY)
    if written:
        choice: Mapping[str, Any] = json.loads(written)
        return target.template(choice["template"]), dict(choice["config"])
    for template in target.templates:
        configs = template.space(problem, hardware)
        if configs:
            return template, configs[0]
    raise TargetError(f"target {target.name} has no kernel template for {problem}")

"""The dialect's operators: build the chosen kernel, pack its weight, call it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from tvm import relax, tirx

from bscompile.dialect import CHOICE_KEY, TENSOR_STEPS, LinearOp, read_node, weight_inputs
from bscompile.dialect.forms import in_form
from bscompile.dialect.precision import kernel_weight, precision_of
from bscompile.errors import TargetError
from bscompile.targets.base import (
    Config,
    HardwareSpec,
    Image,
    Kernel,
    KernelTemplate,
    Problem,
    problem_of,
)
from bscompile.targets.lowering.narrowing import narrowed
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
        view.expr(index) if step == "bias" else reshaped(view.bb, view.expr(index), [m, n])
        for step, index in epilogue_tensors(op, view.node)
    ]
    call = kernel_call(view, op, m)
    assert call is not None  # only kernels that read images may be missing
    y = call(rows, tensors)
    return reshaped(view.bb, y, [*leading, tirx.const(n, "int64")])


def epilogue_tensors(op: LinearOp, node: ir.Node) -> list[tuple[str, int]]:
    """The steps that read a tensor, each with the number of the input that is it."""
    steps = [step for step in op.epilogue if step in TENSOR_STEPS]
    start = 1 + len(weight_inputs(node))
    return [(step, start + i) for i, step in enumerate(steps)]


def kernel_call(
    view: NodeView, op: LinearOp, m: Any, image: Image | None = None
) -> Callable[[Any, list[Any]], Any] | None:
    """A function (x, epilogue tensors) -> y [m, n] that emits the call of the layer's kernel.

    Layers with the same weight and choice share its parameters.

    Args:
        view: The layer's node.
        op: The layer.
        m: Rows of y.
        image: What x is; None for a matrix [m, k].

    Returns:
        None where the chosen kernel cannot read an image.
    """
    importer = view.importer
    static_m = int(m.value) if isinstance(m, tirx.IntImm) else None
    problem = problem_of(op, static_m, precision_of(op), importer.context.typical_rows)
    ways = _ways(view.node, op, problem, importer)
    key = (
        tuple(weight_inputs(view.node)),
        tuple((limit, way.identity) for limit, way in ways),
        problem,
        image,
    )
    if key not in importer.shared:
        kernels = [_build(way, op, problem, importer.context.hardware, image) for _, way in ways]
        built = [kernel for kernel in kernels if kernel is not None]
        if len(built) < len(kernels):
            return None
        importer.shared[key] = _register(importer, op, _joined(built, [up for up, _ in ways]))
    function, operands, x_dtype = importer.shared[key]
    result = relax.TensorType([m, tirx.const(problem.n, "int64")], problem.y_dtype)

    def call(x: Any, tensors: list[Any]) -> Any:
        if x_dtype:
            x = narrowed(view.bb, x, x_dtype)
        return view.bb.emit(relax.call_tir(function, [x, *operands, *tensors], result))

    return call


def _register(importer: Importer, op: LinearOp, kernel: Kernel) -> tuple[Any, list[Any], str]:
    prim_func = kernel.prim_func.with_attr("op_pattern", _OPAQUE)
    prim_func = prim_func.with_attr("tirx.is_scheduled", True).without_attr("global_symbol")
    # The builder gives structurally equal functions one name, so equal layers share their code.
    function = importer.bb.add_func(prim_func, f"{op.form}_matmul")
    operands = [_operand(importer, f"{op.name}.{s}", array) for s, array in kernel.operands]
    return function, operands, kernel.x_dtype


def _operand(importer: Importer, name: str, array: npt.NDArray[Any]) -> Any:
    if array.dtype.name != "bfloat16":
        return importer.parameter(name, array)
    # Neither numpy nor the artifact knows bfloat16: its bits travel as uint16.
    bits = importer.parameter(name, array.view(np.uint16))
    return importer.bb.emit(relax.op.memory.view(bits, dtype="bfloat16"))


@dataclass(frozen=True, eq=False)
class _Way:
    """A form, template and configuration."""

    form: str
    block: tuple[int, int]
    template: KernelTemplate
    config: Config

    @property
    def identity(self) -> tuple[Any, ...]:
        config = tuple(sorted(self.config.items()))
        return self.form, self.block, self.template.name, config


def _ways(
    node: ir.Node, op: LinearOp, problem: Problem, importer: Importer
) -> list[tuple[int, _Way]]:
    """(most rows, way) as the choose-form pass wrote them, or the first that fits.

    The limit of the last one is of no meaning.
    """
    target, hardware = importer.context.target, importer.context.hardware
    written = node.metadata_props.get(CHOICE_KEY)
    if not written:
        for template in target.templates:
            configs = template.space(problem, hardware)
            if configs:
                return [(0, _Way(op.form, problem.block, template, configs[0]))]
        raise TargetError(f"target {target.name} has no kernel template for {problem}")
    choice: Mapping[str, Any] = json.loads(written)
    if problem.m is not None or not choice.get("buckets"):
        template = target.template(choice["template"])
        return [(0, _Way(op.form, problem.block, template, dict(choice["config"])))]
    ways: list[tuple[int, _Way]] = []
    for bucket in choice["buckets"]:
        template, config = target.template(bucket["template"]), dict(bucket["config"])
        bh, bw = bucket["block"]
        way = _Way(bucket["form"], (int(bh), int(bw)), template, config)
        limit = int(bucket["up_to"] or 0)
        if ways and ways[-1][1].identity == way.identity:
            ways[-1] = (limit, way)  # neighbours that run the same are one
        else:
            ways.append((limit, way))
    return ways


def _build(
    way: _Way, op: LinearOp, problem: Problem, hardware: HardwareSpec, image: Image | None
) -> Kernel | None:
    """The kernel of one way; None where it cannot read an image."""
    if (way.form, way.block) != (op.form, problem.block):
        op = op.with_weight(in_form(op.weight, way.form, way.block))
        own = problem_of(op, problem.m, precision_of(op), problem.typical_m)
        problem = own
    if image is None:
        return way.template.build(problem, kernel_weight(op), way.config, hardware)
    return way.template.build_conv(problem, op.weight, way.config, hardware, image)


def _joined(kernels: list[Kernel], limits: list[int]) -> Kernel:
    if len(kernels) == 1:
        return kernels[0]
    from bscompile.targets.kernels.code.branches import join

    return join(kernels, limits[:-1])

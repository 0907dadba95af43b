"""Converters of operators on numbers where TVM's compute something else than ONNX says."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from tvm import relax

from bscompile.targets.lowering.shape_converters import shape_of

if TYPE_CHECKING:
    from bscompile.targets.lowering.importer import NodeView

#: Exponents for which a product is as good as a power.
_FACTORS = (2, 3, 4, 5)


def _dtype(expr: Any) -> str:
    return str(expr.ty.dtype)


def _cast(bb: relax.BlockBuilder, expr: Any, dtype: str) -> Any:
    return expr if _dtype(expr) == dtype else bb.emit(relax.op.astype(expr, dtype))


def dropout(view: NodeView) -> Any:
    """Dropout at inference: the data itself, and a mask that keeps everything."""
    data = view.expr(0)
    sizes = relax.ShapeExpr(shape_of(data))
    return [data, relax.op.full(sizes, relax.const(True, "bool"), "bool")][: len(view.node.outputs)]


def layer_normalization(view: NodeView) -> Any:
    """LayerNormalization; TVM's has no mean and no inverse deviation, so those are spelled out."""
    bb, data, scale = view.bb, view.expr(0), view.expr(1)
    axis = view.attributes.get("axis", -1)
    epsilon = view.attributes.get("epsilon", 1e-5)
    rank = len(shape_of(data))
    axes = list(range(axis % rank, rank))
    bias = view.expr(2) if view.has(2) else relax.op.zeros_like(scale)
    bias = bb.emit(bias) if not isinstance(bias, relax.Var) else bias
    y = relax.op.nn.layer_norm(data, scale, bias, axes, epsilon)
    if not any(output.name for output in view.node.outputs[1:]):
        return [y]
    x = _cast(bb, data, "float32")
    mean = bb.emit(relax.op.mean(x, axes, keepdims=True))
    variance = bb.emit(relax.op.variance(x, axes, keepdims=True))
    inverse = relax.op.rsqrt(relax.op.add(variance, relax.const(epsilon, "float32")))
    return [y, mean, inverse]


def rms_normalization(view: NodeView) -> Any:
    """RMSNormalization: x / sqrt(mean(x²) + epsilon) · scale, in float32 unless told otherwise."""
    bb, data, scale = view.bb, view.expr(0), view.expr(1)
    axis = view.attributes.get("axis", -1)
    rank, kept = len(shape_of(data)), _dtype(data)
    axes = list(range(axis % rank, rank))
    wide = "float32" if view.attributes.get("stash_type", 1) == 1 else kept
    x = _cast(bb, data, wide)
    if axes[0] > 0 and len(shape_of(scale)) == len(axes):
        y = bb.emit(
            relax.op.nn.rms_norm(
                x, _cast(bb, scale, wide), axes, view.attributes.get("epsilon", 1e-5)
            )
        )
        return _cast(bb, y, kept)
    # TVM's kernel needs a row to work on, and a scale as long as the row.
    square = bb.emit(relax.op.mean(relax.op.multiply(x, x), axes, keepdims=True))
    epsilon = relax.const(view.attributes.get("epsilon", 1e-5), wide)
    y = bb.emit(relax.op.multiply(x, relax.op.rsqrt(relax.op.add(square, epsilon))))
    return relax.op.multiply(_cast(bb, y, kept), _cast(bb, scale, kept))


def _repeated(bb: relax.BlockBuilder, x: Any, times: int) -> Any:
    """A power to a whole number: products stay in vectors, pow is a call per element."""
    half = x if times < 4 else bb.emit(_repeated(bb, x, times // 2))
    square = relax.op.multiply(half, half)
    return relax.op.multiply(bb.emit(square), x) if times % 2 else square


def power(view: NodeView) -> Any:
    """Pow of two dtypes; the result has the base's."""
    bb, base, exponent = view.bb, view.expr(0), view.expr(1)
    dtype = _dtype(base)
    if dtype.startswith("float"):
        times = view.known(1)
        if times is not None and times.array.ndim == 0 and times.numpy() in _FACTORS:
            return _repeated(bb, base, int(times.numpy()))
        return relax.op.power(base, _cast(bb, exponent, dtype))
    if dtype.endswith("64"):
        raise ValueError("powers of 64-bit integers are not exact")
    # float64 holds every power that fits the dtype; pow's last bit must not turn 9 into 8.
    y = bb.emit(relax.op.power(*(_cast(bb, expr, "float64") for expr in (base, exponent))))
    if not _dtype(exponent).startswith("float"):
        y = relax.op.round(y)
    return relax.op.astype(y, dtype)


def modulo(view: NodeView) -> Any:
    """Mod: the remainder has the divisor's sign, or with fmod the dividend's."""
    a, b = view.expr(0), view.expr(1)
    if view.attributes.get("fmod", 0):
        return relax.op.mod(a, b)
    if not _dtype(a).startswith("float"):
        return relax.op.floor_mod(a, b)
    # TVM's floor_mod of floats is a - floor(a / b) b, which is NaN where b is infinite.
    bb = view.bb
    rest = bb.emit(relax.op.mod(a, b))
    zero = relax.const(0, _dtype(a))
    below, negative = relax.op.less(rest, zero), relax.op.less(b, zero)
    differ = bb.emit(relax.op.logical_xor(below, negative))
    moved = relax.op.logical_and(differ, relax.op.not_equal(rest, zero))
    return relax.op.where(bb.emit(moved), relax.op.add(rest, b), rest)


def is_inf(view: NodeView) -> Any:
    """IsInf, of one sign where the node asks for one."""
    x = view.expr(0)
    zero = relax.const(0, _dtype(x))
    found = view.bb.emit(relax.op.isinf(x))
    if not view.attributes.get("detect_negative", 1):
        found = view.bb.emit(relax.op.logical_and(found, relax.op.greater(x, zero)))
    if not view.attributes.get("detect_positive", 1):
        found = view.bb.emit(relax.op.logical_and(found, relax.op.less(x, zero)))
    return found


def eye_like(view: NodeView) -> Any:
    """EyeLike: ones on a diagonal, in the attribute's dtype, else in the input's."""
    x = view.expr(0)
    asked = view.attributes.get("dtype")
    dtype = _dtype(x) if asked is None else ir.DataType(asked).numpy().name
    rows, columns = shape_of(x)
    return relax.op.eye(rows, columns, view.attributes.get("k", 0), dtype)


def swish(view: NodeView) -> Any:
    """Swish: x · sigmoid(alpha x)."""
    x, alpha = view.expr(0), view.attributes.get("alpha", 1.0)
    if alpha == 1.0:
        return relax.op.nn.silu(x)
    scaled = view.bb.emit(relax.op.multiply(x, relax.const(alpha, _dtype(x))))
    return relax.op.multiply(x, view.bb.emit(relax.op.sigmoid(scaled)))


def maximum(view: NodeView) -> Any:
    """Max of any number of tensors, in pairs; TVM's stacks them in memory."""
    return _in_pairs(view, relax.op.maximum)


def minimum(view: NodeView) -> Any:
    """Min of any number of tensors, in pairs."""
    return _in_pairs(view, relax.op.minimum)


def clip(view: NodeView) -> Any:
    """Clip of float32 between known numbers, as Max and Min of them; None for TVM's converter."""
    y = view.expr(0)
    given = [index for index in (1, 2) if view.has(index)]
    if view.opset < 11 or _dtype(y) != "float32" or not all(view.known(i) for i in given):
        return None
    for index in given:
        operator = relax.op.maximum if index == 1 else relax.op.minimum
        y = view.bb.emit(operator(y, view.expr(index)))
    return y


def _in_pairs(view: NodeView, operator: Callable[[Any, Any], Any]) -> Any:
    exprs = [view.expr(i) for i in range(len(view.node.inputs))]
    return reduce(lambda a, b: view.bb.emit(operator(a, b)), exprs)

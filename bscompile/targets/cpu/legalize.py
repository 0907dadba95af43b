"""Operators written as loops in our own way: functions that stay in vector registers.

TVM's defaults call libm once per element, 10-30 ns each; these cost about 0.2 ns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import relax, te, tirx, topi

Legalizer = Callable[[relax.BlockBuilder, Any], Any]


def _default(bb: relax.BlockBuilder, call: Any) -> Any:
    """TVM's own legalization, which a legalizer of ours replaces for every dtype."""
    return call.op.get_attr("FLegalize")(bb, call)


def _unary(name: str, function: Callable[[te.Tensor], te.Tensor]) -> Legalizer:
    def legalize(bb: relax.BlockBuilder, call: Any) -> Any:
        if str(call.args[0].ty.dtype) != "float32":
            return _default(bb, call)
        return bb.call_te(function, call.args[0], primfunc_name_hint=name)

    return legalize


def _scaled(x: te.Tensor, factor: float) -> te.Tensor:
    return topi.multiply(x, tirx.const(factor, x.dtype))


def _plus_one(x: te.Tensor) -> te.Tensor:
    return topi.add(x, tirx.const(1.0, x.dtype))


def _sigmoid(x: te.Tensor) -> te.Tensor:
    return topi.divide(tirx.const(1.0, x.dtype), _plus_one(topi.fast_exp(topi.negative(x))))


def _gelu(x: te.Tensor) -> te.Tensor:
    return topi.multiply(_scaled(x, 0.5), _plus_one(topi.fast_erf(_scaled(x, math.sqrt(0.5)))))


def _gelu_tanh(x: te.Tensor) -> te.Tensor:
    cubic = topi.multiply(_scaled(topi.multiply(x, x), 0.044715), x)
    inner = _scaled(topi.add(x, cubic), 2 * math.sqrt(2 / math.pi))
    return topi.multiply(x, _sigmoid(inner))


def _silu(x: te.Tensor) -> te.Tensor:
    return topi.multiply(x, _sigmoid(x))


def _keep_nan(function: Callable[[te.Tensor], te.Tensor]) -> Callable[[te.Tensor], te.Tensor]:
    """The function, with NaN where its argument is; TVM's fast erf clamps NaN to a number."""

    def kept(x: te.Tensor) -> te.Tensor:
        y = function(x)
        return te.compute(x.shape, lambda *i: tirx.Select(tirx.isnan(x(*i)), x(*i), y(*i)), "kept")

    return kept


def _relu(x: te.Tensor) -> te.Tensor:
    zero = tirx.const(0.0, x.dtype)
    return te.compute(x.shape, lambda *i: tirx.Select(x(*i) < zero, zero, x(*i)), "relu")


def _broadcast_read(x: te.Tensor, at: tuple[Any, ...]) -> Any:
    """The element of ``x`` that broadcasting puts at a position of the result."""
    last = at[len(at) - len(x.shape) :]
    return x(*(0 if _is_one(size) else i for i, size in zip(last, x.shape, strict=True)))


def _is_one(size: Any) -> bool:
    return isinstance(size, tirx.IntImm) and int(size.value) == 1


def _pairwise(name: str, before: Callable[[Any, Any], Any]) -> Legalizer:
    """Max or Min of two tensors, NaN where one is NaN; TVM's picks the second then."""

    def kept(a: te.Tensor, b: te.Tensor) -> te.Tensor:
        def element(*at: Any) -> Any:
            x, y = _broadcast_read(a, at), _broadcast_read(b, at)
            # Neither comes first where one is NaN, and then so is the sum.
            return tirx.Select(before(x, y), x, tirx.Select(before(y, x), y, x + y))

        return te.compute(topi.maximum(a, b).shape, element, name)

    def legalize(bb: relax.BlockBuilder, call: Any) -> Any:
        if str(call.args[0].ty.dtype) not in ("float32", "float64"):
            return _default(bb, call)
        return bb.call_te(kept, *call.args, primfunc_name_hint=name)

    return legalize


def _extreme(name: str, pick: Callable[[Any, Any], Any], worst: float) -> Legalizer:
    """ReduceMax or ReduceMin that starts from an infinity.

    TVM starts from the largest finite number, which a row that is -inf all over then becomes.
    """

    def legalize(bb: relax.BlockBuilder, call: Any) -> Any:
        x, rank = call.args[0], len(call.args[0].ty.shape.values)
        if not str(x.ty.dtype).startswith("float"):
            return _default(bb, call)
        given = call.attrs.axis
        axes = range(rank) if given is None else sorted(int(axis) % rank for axis in given)
        reduce = partial(_reduce, axes=tuple(axes), keep=bool(call.attrs.keepdims))
        return bb.call_te(lambda x: reduce(x, pick=pick, worst=worst), x, primfunc_name_hint=name)

    return legalize


def _reduce(
    x: te.Tensor, axes: tuple[int, ...], keep: bool, pick: Callable[[Any, Any], Any], worst: float
) -> te.Tensor:
    over = {axis: te.reduce_axis((0, x.shape[axis]), f"r{axis}") for axis in axes}
    sizes = [1 if axis in over else size for axis, size in enumerate(x.shape)]
    reducer = te.comm_reducer(pick, lambda dtype: tirx.const(worst, dtype), name="extreme")

    def element(*at: Any) -> Any:
        kept = iter(at if not keep else [i for axis, i in enumerate(at) if axis not in over])
        return reducer(
            x(*(over[axis] if axis in over else next(kept) for axis in range(len(x.shape)))),
            axis=list(over.values()),
        )

    shape = sizes if keep else [size for axis, size in enumerate(sizes) if axis not in over]
    return te.compute(shape, element, name="extreme")


def _group_norm(bb: relax.BlockBuilder, call: Any) -> Any:
    """Mean and variance one after the other; TVM takes both in one go, as a difference of squares.

    Groups of channels become an axis behind the one of the groups.
    """
    op, attrs = relax.op, call.attrs
    x, *vectors = call.args
    shape = list(x.ty.shape.values)
    axis, groups = int(attrs.channel_axis) % len(shape), int(attrs.num_groups)
    size = int(shape[axis].value) // groups
    cut = [*shape[:axis], groups, size, *shape[axis + 1 :]]
    over = [axis + 1, *(int(a) + (int(a) > axis) for a in attrs.axes)]
    x = bb.emit(op.reshape(x, cut))
    distance = bb.emit(op.subtract(x, bb.emit(op.mean(x, over, keepdims=True))))
    variance = bb.emit(op.mean(op.multiply(distance, distance), over, keepdims=True))
    epsilon = relax.const(float(attrs.epsilon), str(x.ty.dtype))
    y = bb.emit(op.divide(distance, op.sqrt(op.add(variance, epsilon))))
    y = bb.emit(op.reshape(y, shape))
    behind = [1] * (len(shape) - axis - 1)
    gamma, beta = (op.reshape(vector, [groups * size, *behind]) for vector in vectors)
    return op.add(op.multiply(y, gamma), beta)


FAST_MATH: dict[str, Legalizer] = {
    "relax.erf": _unary("erf", _keep_nan(topi.fast_erf)),
    "relax.exp": _unary("exp", topi.fast_exp),
    "relax.max": _extreme("max", lambda a, b: tirx.max(a, b), -math.inf),
    "relax.maximum": _pairwise("maximum", lambda a, b: a >= b),
    "relax.min": _extreme("min", lambda a, b: tirx.min(a, b), math.inf),
    "relax.minimum": _pairwise("minimum", lambda a, b: a <= b),
    "relax.nn.gelu": _unary("gelu", _gelu),
    "relax.nn.gelu_tanh": _unary("gelu_tanh", _gelu_tanh),
    "relax.nn.group_norm": _group_norm,
    "relax.nn.relu": _unary("relu", _relu),
    "relax.nn.silu": _unary("silu", _silu),
    "relax.sigmoid": _unary("sigmoid", _sigmoid),
    "relax.tanh": _unary("tanh", topi.fast_tanh),
}

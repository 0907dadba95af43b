"""Converters of reductions where TVM's compute something else than ONNX says.

Over an axis of length 0 a reduction is its neutral element; TVM would leave the memory as it is.
ReduceMax and ReduceMin keep NaN and take booleans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from bscompile.passes.graph import static_shape

if TYPE_CHECKING:
    from bscompile.targets.lowering.importer import NodeView

_OF_NOTHING = {
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"), 0),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp"), -np.inf),
    "ReduceMean": np.nan,
    "ReduceProd": 1,
}
REDUCTIONS = (*_OF_NOTHING, "ReduceMax", "ReduceMin")


def reduction(view: NodeView) -> Any:
    """A reduction whose result TVM's converter would get wrong, None for all others."""
    axes = view.known(1)
    if axes is not None and not axes.array.size:
        view.node.replace_input_with(1, None)  # no axes are as good as none given
    if 0 in (static_shape(view.node.inputs[0]) or ()):
        return _of_nothing(view)
    if view.node.op_type in ("ReduceMax", "ReduceMin"):
        return _extreme(view)
    return None


def _of_nothing(view: NodeView) -> Any:
    shape = static_shape(view.node.outputs[0])
    if shape is None:
        raise ValueError("the shape of its result is not known")
    op_type, dtype = view.node.op_type, np.dtype(str(view.expr(0).ty.dtype))
    fill = _OF_NOTHING.get(op_type)
    if fill is None:  # the extreme of nothing is the worst value that the dtype has
        fill = _worst(dtype, lowest=op_type == "ReduceMax")
    elif dtype.kind != "f" and not np.isfinite(fill):
        raise ValueError(f"it has no result for an empty {dtype} tensor")
    return relax.const(np.full(shape, fill, dtype), dtype.name)


def _worst(dtype: np.dtype[Any], lowest: bool) -> Any:
    if dtype.kind == "f":
        return -np.inf if lowest else np.inf
    if dtype.kind == "b":
        return not lowest
    return np.iinfo(dtype).min if lowest else np.iinfo(dtype).max


def _extreme(view: NodeView) -> Any:
    bb, x = view.bb, view.expr(0)
    dtype = str(x.ty.dtype)
    axes = _axes(view)
    if axes == ():
        return x
    keep = bool(view.attributes.get("keepdims", 1))
    operator = relax.op.max if view.node.op_type == "ReduceMax" else relax.op.min
    if dtype == "bool":
        number = bb.emit(relax.op.astype(x, "uint8"))
        return relax.op.astype(bb.emit(operator(number, axes, keep)), "bool")
    y = operator(x, axes, keep)
    if not dtype.startswith("float"):
        return y
    # A comparison with NaN is false, so that NaN would win or lose by its position.
    found = bb.emit(relax.op.astype(bb.emit(relax.op.isnan(x)), "uint8"))
    any_nan = bb.emit(relax.op.astype(bb.emit(relax.op.max(found, axes, keep)), "bool"))
    return relax.op.where(any_nan, relax.const(np.nan, dtype), bb.emit(y))


def _axes(view: NodeView) -> tuple[int, ...] | None:
    """The axes to reduce, None for all, empty for none."""
    known = view.known(1)
    given = () if known is None else tuple(int(v) for v in known.numpy().reshape(-1))
    given = given or tuple(view.attributes.get("axes", ()))
    if not given:
        return () if view.attributes.get("noop_with_empty_axes", 0) else None
    return given

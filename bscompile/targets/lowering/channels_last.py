"""Images with their channels last: kept beside the layout that ONNX asks for.

Convolutions compute [b, h, w, c], ONNX speaks of [b, c, h, w]. Whoever computes an image channels
last says so here; the transposed copy that ONNX means is emitted beside it, and falls away
where nobody reads it. Operators that work on channels and positions alike take the copy that is
there, so between two convolutions nothing is transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from tvm import relax, tirx

from bscompile.targets.lowering import normalisation
from bscompile.targets.lowering.importer import NodeView

if TYPE_CHECKING:
    from bscompile.targets.lowering.converters import Converter

_KEY = "channels last"
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]

#: Operators that treat every element alike.
_ELEMENTWISE = frozenset(
    ("Abs", "Add", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
     "Identity", "LeakyRelu", "Max", "Min", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus",
     "Sqrt", "Sub", "Swish", "Tanh")
)  # fmt: skip


def image(view: NodeView, index: int) -> Any:
    """An input [b, c, h, w] as [b, h, w, c]."""
    known = _known(view, view.node.inputs[index])
    if known is not None:
        return known
    return view.bb.emit(relax.op.permute_dims(view.expr(index), _TO_LAST))


def is_last(view: NodeView, index: int) -> bool:
    """Whether an input was computed with its channels last."""
    return _known(view, view.node.inputs[index]) is not None


def result(view: NodeView, y: Any) -> Any:
    """The node's first output as ONNX means it, from ``y`` [b, h, w, c]."""
    y = view.bb.emit(y)
    view.importer.shared[_KEY, view.node.outputs[0]] = y
    return view.bb.emit(relax.op.permute_dims(y, _TO_FIRST))


def convert(view: NodeView, converter: Converter) -> Any:
    """Convert a node, channels last where one of its inputs is and the operator allows it."""
    if view.node.domain == "" and view.node.op_type == "Transpose":
        return _transpose(view, converter)
    if view.node.domain == "" and any(
        _known(view, value) is not None for value in view.node.inputs
    ):
        if view.node.op_type in _ELEMENTWISE:
            turned = _turned(view)
            if turned is not None:
                return result(view, converter(turned))
        elif (rule := _RULES.get(view.node.op_type)) is not None:
            y = rule(view)
            if y is not None:
                return result(view, y)
    return converter(view)


def _known(view: NodeView, value: ir.Value | None) -> Any:
    return None if value is None else view.importer.shared.get((_KEY, value))


def _transpose(view: NodeView, converter: Converter) -> Any:
    """A change of layout that the model itself makes: the other layout is there already."""
    perm = list(view.attributes.get("perm", ()))
    if perm == _TO_LAST and is_last(view, 0):
        return image(view, 0)
    if perm == _TO_FIRST:
        view.importer.shared[_KEY, view.node.outputs[0]] = view.expr(0)
    return converter(view)


# ---------------------------------------------------------------- elementwise


@dataclass(frozen=True)
class _Turned(NodeView):
    """The same node on inputs whose channels are last."""

    exprs: tuple[Any, ...] = ()

    def expr(self, index: int) -> Any:
        return self.exprs[index] if self.has(index) else None


def _turned(view: NodeView) -> _Turned | None:
    """None where an input's shape does not say what its axes are."""
    exprs = []
    for index, value in enumerate(view.node.inputs):
        known = _known(view, value)
        if value is None or known is not None:
            exprs.append(known)
            continue
        expr = view.expr(index)
        shape = [_length(d) for d in expr.ty.shape.values] if expr.ty.shape is not None else None
        if shape is None:
            return None
        if all(length == 1 for length in shape):
            if len(shape) > 4:
                return None
            exprs.append(expr)
        elif len(shape) in (3, 4) and shape[-2:] == [1, 1] and shape[:-3] in ([], [1]):
            exprs.append(view.bb.emit(relax.op.reshape(expr, [expr.ty.shape.values[-3]])))
        elif len(shape) == 4:
            exprs.append(view.bb.emit(relax.op.permute_dims(expr, _TO_LAST)))
        else:
            return None
    return _Turned(view.node, view.importer, view.attributes, view.opset, tuple(exprs))


def _length(size: Any) -> int | None:
    return int(size.value) if isinstance(size, tirx.IntImm) else None


# ---------------------------------------------------------------- channels, windows, sums


def _batch_normalization(view: NodeView) -> Any:
    if view.attributes.get("training_mode", 0):
        return None
    op, bb = relax.op, view.bb
    scale, shift, mean, variance = (view.expr(i) for i in range(1, 5))
    epsilon = relax.const(float(view.attributes.get("epsilon", 1e-5)), "float32")
    factor = bb.emit(op.divide(scale, op.sqrt(op.add(variance, epsilon))))
    rest = bb.emit(op.subtract(shift, op.multiply(mean, factor)))
    return op.add(op.multiply(image(view, 0), factor), rest)


def _normalisation(view: NodeView) -> Any:
    return normalisation.normalised(view, image(view, 0), channel_axis=3, axes=[1, 2])


def _max_pool(view: NodeView) -> Any:
    window = _window(view)
    if window is None or len(view.node.outputs) > 1:
        return None
    return relax.op.nn.max_pool2d(image(view, 0), layout="NHWC", **window)


def _average_pool(view: NodeView) -> Any:
    window = _window(view)
    if window is None:
        return None
    padded = bool(view.attributes.get("count_include_pad", 0))
    return relax.op.nn.avg_pool2d(image(view, 0), layout="NHWC", count_include_pad=padded, **window)


def _window(view: NodeView) -> dict[str, Any] | None:
    """A pool's attributes as Relax names them; None for what is left to the general converter."""
    attributes = view.attributes
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or attributes.get("ceil_mode", 0):
        return None
    kernel = tuple(attributes["kernel_shape"])
    dilation = tuple(attributes.get("dilations", (1,) * len(kernel)))
    if len(kernel) != 2 or dilation != (1, 1):
        return None
    return {
        "pool_size": kernel,
        "strides": tuple(attributes.get("strides", (1, 1))),
        "padding": tuple(attributes.get("pads", (0, 0, 0, 0))),
    }


def _global_average_pool(view: NodeView) -> Any:
    return relax.op.mean(image(view, 0), axis=[1, 2], keepdims=True)


def _mean(view: NodeView) -> Any:
    axes = view.known(1)
    if axes is None or not view.attributes.get("keepdims", 1):
        return None
    if sorted(int(axis) % 4 for axis in axes.ints()) != [2, 3]:
        return None
    return _global_average_pool(view)


def _concatenate(view: NodeView) -> Any:
    if int(view.attributes["axis"]) % 4 != 1:
        return None
    images = [image(view, index) for index in range(len(view.node.inputs))]
    return relax.op.concat(images, axis=3)


def _slice(view: NodeView) -> Any:
    """Some channels of an image; None where other axes are cut, or one backwards."""
    known = [view.known(index) for index in range(1, 5)]
    if any(values is None and view.has(i) for i, values in enumerate(known, 1)):
        return None
    first, last, axes, steps = (None if v is None else v.ints() for v in known)
    if axes is None or [int(axis) % 4 for axis in axes] != [1] or (steps or [1])[0] < 1:
        return None
    return relax.op.strided_slice(image(view, 0), axes=[3], begin=first, end=last, strides=steps)


_RULES: dict[str, Callable[[NodeView], Any]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Concat": _concatenate,
    "GlobalAveragePool": _global_average_pool,
    "GroupNormalization": _normalisation,
    "InstanceNormalization": _normalisation,
    "MaxPool": _max_pool,
    "ReduceMean": _mean,
    "Slice": _slice,
}

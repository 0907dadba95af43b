"""Operators that move, repeat or count elements without looking at them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bscompile.sizes.values import MAX_ELEMENTS, Attributes, Known, known

Rule = Callable[..., Known | tuple[Known, ...] | None]


def _axes(inputs: Sequence[Known | None], attributes: Attributes) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(v) for v in inputs[1].ints()]
    return list(attributes["axes"]) if "axes" in attributes else None


def _gather(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    data, indices = inputs
    picked = np.take(data.array, indices.numpy(), axis=attributes.get("axis", 0))
    return known(np.asarray(picked, dtype=object), data.dtype)


def _slice(inputs: Sequence[Known | None], _: Attributes) -> Known | None:
    data = inputs[0]
    assert data is not None
    starts, ends = (v.ints() for v in inputs[1:3] if v is not None)
    axes = inputs[3].ints() if len(inputs) > 3 and inputs[3] else list(range(len(starts)))
    steps = inputs[4].ints() if len(inputs) > 4 and inputs[4] else [1] * len(starts)
    window = [slice(None)] * data.array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -data.array.shape[axis] else end
        window[axis] = slice(start, stop, step)
    return known(data.array[tuple(window)], data.dtype)


def _concat(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    joined = np.concatenate([v.array for v in inputs], axis=attributes["axis"])
    return known(joined, inputs[0].dtype)


def _squeeze(inputs: Sequence[Known | None], attributes: Attributes) -> Known | None:
    data, axes = inputs[0], _axes(inputs, attributes)
    assert data is not None
    return known(np.squeeze(data.array, None if axes is None else tuple(axes)), data.dtype)


def _unsqueeze(inputs: Sequence[Known | None], attributes: Attributes) -> Known | None:
    data, axes = inputs[0], _axes(inputs, attributes)
    assert data is not None
    assert axes is not None
    return known(np.expand_dims(data.array, tuple(axes)), data.dtype)


def _reshape(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    data, shape = inputs
    sizes = [int(v) for v in shape.numpy()]
    if not attributes.get("allowzero", 0):
        sizes = [data.array.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return known(data.array.reshape(sizes), data.dtype)


def _transpose(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    return known(np.transpose(inputs[0].array, attributes.get("perm")), inputs[0].dtype)


def _split(inputs: Sequence[Known | None], attributes: Attributes) -> tuple[Known, ...] | None:
    data, axis = inputs[0], attributes.get("axis", 0)
    assert data is not None
    if len(inputs) < 2 or inputs[1] is None:
        return None
    cuts = np.cumsum(inputs[1].numpy())[:-1]
    parts = [known(p, data.dtype) for p in np.split(data.array, cuts, axis)]
    return tuple(p for p in parts if p is not None)


def _range(inputs: Sequence[Known], _: Attributes) -> Known | None:
    if not all(v.is_constant for v in inputs):
        return None
    start, limit, step = (v.numpy().item() for v in inputs)
    return known(np.arange(start, limit, step), inputs[0].dtype)


def _constant_of_shape(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    if not inputs[0].is_constant:
        return None
    fill = attributes.get("value")
    value = np.zeros(1, np.float32)
    if fill is not None:
        from onnx import numpy_helper

        value = numpy_helper.to_array(fill)
    shape = [int(v) for v in inputs[0].ints()]
    if math.prod(shape) > MAX_ELEMENTS:
        return None
    return known(np.full(shape, value.item()), str(value.dtype))


def _expand(inputs: Sequence[Known], _: Attributes) -> Known | None:
    data, shape = inputs
    sizes = [int(v) for v in shape.numpy()]
    if math.prod(sizes) > MAX_ELEMENTS:
        return None
    both = np.broadcast_shapes(data.array.shape, tuple(sizes))
    return known(np.broadcast_to(data.array, both), data.dtype)


def _product(inputs: Sequence[Known | None], attributes: Attributes) -> Known | None:
    data, axes = inputs[0], _axes(inputs, attributes)
    assert data is not None
    if data.array.ndim != 1 or axes not in (None, [0], [-1]):
        return None
    total: Any = 1
    for value in data.ints():
        total = total * value
    return known([total] if attributes.get("keepdims", 1) else total, data.dtype)


def _identity(inputs: Sequence[Known], _: Attributes) -> Known:
    return inputs[0]


MOVES: dict[str, Rule] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Range": _range,
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

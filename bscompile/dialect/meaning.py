"""The dialect's meaning in numpy: the float64 reference that kernels are checked against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.dialect.activations import activate
from bscompile.dialect.ops import TENSOR_STEPS, ConvGeometry, LinearOp, dense_weight
from bscompile.formats import KroneckerSum

Array = npt.NDArray[Any]


def apply_step(step: str, y: Array, tensor: Array | None, conv: bool) -> Array:
    """One epilogue step in the dtype of ``y``; ``tensor`` belongs to bias and residual."""
    if step == "bias":
        assert tensor is not None
        shaped: Array = tensor[:, None, None] if conv else tensor
        return y + shaped
    if step == "residual":
        assert tensor is not None
        return y + tensor
    return activate(step, y)


def evaluate(op: LinearOp, x: Array, tensors: tuple[Array, ...] = ()) -> Array:
    """The op's result in float64: the reference that kernels are checked against."""
    y = _product(op, x)
    rest = list(tensors)
    for step in op.epilogue:
        tensor = rest.pop(0).astype(np.float64) if step in TENSOR_STEPS else None
        y = apply_step(step, y, tensor, conv=op.conv is not None)
    return y if op.quantization is None else op.quantization.requantize(y)


def _product(op: LinearOp, x: Array) -> Array:
    """X Wᵀ in float64; the sums of an int8 layer are exact."""
    weight = op.weight
    if isinstance(weight, KroneckerSum):  # numpy's einsum knows no bfloat16
        weight = weight.astype(np.float64)
    dense = dense_weight(weight).astype(np.float64)
    if op.quantization is None:
        x = x.astype(np.float64)
        return x @ dense.T if op.conv is None else _convolve(x, dense, op.conv)
    if op.conv is not None:
        raise ValueError("a quantised convolution is checked as the matmul over its windows")
    q, scale, zero = op.quantization.quantize(x)
    sums: Array = (q - zero).astype(np.float64) @ dense.T
    real: Array = sums * (scale * op.quantization.scale)
    return real


def _convolve(x: Array, weight: Array, conv: ConvGeometry) -> Array:
    patches = im2col(x, conv)  # [n, c kh kw, oh, ow]
    y: Array = np.einsum("ok,nkhw->nohw", weight, patches)
    return y


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

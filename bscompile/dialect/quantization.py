"""What an int8 layer computes, bit for bit up to its scaling.

    q  = clip(rint(x / s) + z)                  x as 8-bit integers, scale s and zero point z
    y  = s scale[out] Σ (q - z) w               w int8, the sum exact in int32
    q' = clip(rint(epilogue(y) / s') + z')      only where the next layer wants 8 bits too

Where s and z come from is the activation mode:

``row``     from each row of x as it comes: uint8, s = (max - min) / 255 over the row with 0
            counted in, z = rint(-min / s): the formula of DynamicQuantizeLinear, row by row,
            but with x * (1 / s) for x / s, which differs where that lies half between integers
``tensor``  the same from all of x, divided: exactly DynamicQuantizeLinear
``static``  written in the model by a quantizer that saw sample data
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

ACTIVATION_MODES = ("row", "tensor", "static")
_WORDS = ("activation", "x_dtype", "q_dtype", "y_dtype")
_FLOATS = ("x_scale", "y_scale")
_INTS = ("x_zero", "y_zero")
LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, eq=False)
class Quantization:
    """How an int8 layer's numbers relate to real ones.

    Attributes:
        scale: float32 [out], W = scale[:, None] * int8 weight.
        activation: ``row``, ``tensor`` or ``static``.
        x_dtype: ``float32`` where the layer quantises x itself, ``uint8`` or ``int8`` where x
            comes quantised (static only).
        q_dtype: What x is quantised to: ``uint8`` or ``int8``.
        x_scale: s, static only.
        x_zero: z, static only.
        y_dtype: ``float32``, or ``uint8`` or ``int8`` where y leaves quantised.
        y_scale: s' of a quantised y.
        y_zero: z' of a quantised y.
    """

    scale: Array
    activation: str = "row"
    x_dtype: str = "float32"
    q_dtype: str = "uint8"
    x_scale: float = 1.0
    x_zero: int = 0
    y_dtype: str = "float32"
    y_scale: float = 1.0
    y_zero: int = 0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATION_MODES:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATION_MODES)}")
        if self.scale.ndim != 1 or self.scale.dtype != np.float32:
            raise ValueError("scale must be float32 [out]")
        if self.x_dtype != "float32" and (self.activation, self.q_dtype) != (
            "static",
            self.x_dtype,
        ):
            raise ValueError("x comes quantised only in static mode")

    @property
    def ends(self) -> tuple[str | float, ...]:
        """Everything but the scales."""
        return tuple(getattr(self, key) for key in (*_WORDS, *_FLOATS, *_INTS))

    def quantize(self, x: Array) -> tuple[Array, Array, Array]:
        """Quantise the rows of x [..., in].

        Returns:
            integers int32 [..., in], s float32 and z int32, both [..., 1].
        """
        rows = (*x.shape[:-1], 1)
        if self.activation == "static":
            s, z = np.full(rows, self.x_scale, np.float32), np.full(rows, self.x_zero, np.int32)
            if self.x_dtype != "float32":
                return x.astype(np.int32), s, z
            return quantize_linear(x, self.x_scale, self.x_zero, self.q_dtype), s, z
        x = x.astype(np.float32)
        axis = -1 if self.activation == "row" else None
        low = np.minimum(x.min(axis=axis, keepdims=True, initial=0), np.float32(0))
        high = np.maximum(x.max(axis=axis, keepdims=True, initial=0), np.float32(0))
        s = ((high - low) / np.float32(255)).astype(np.float32)
        s = np.where(s > 0, s, np.float32(1))
        if self.activation == "row":
            inverse = np.float32(1) / s
            z = np.clip(np.rint(-low * inverse), 0, 255)
            q = np.clip(np.rint(x * inverse) + z, 0, 255)
        else:
            z = np.clip(np.rint(-low / s), 0, 255)
            q = np.clip(np.rint(x / s) + z, 0, 255)
        return (
            q.astype(np.int32),
            np.broadcast_to(s, rows),
            np.broadcast_to(z, rows).astype(np.int32),
        )

    def requantize(self, y: Array) -> Array:
        """The layer's result as it leaves."""
        if self.y_dtype == "float32":
            return y
        return quantize_linear(y, self.y_scale, self.y_zero, self.y_dtype).astype(self.y_dtype)


def quantization_attributes(quantization: Quantization) -> list[ir.Attr]:
    """A node's attributes: everything but the scales, which are an input."""
    words = [ir.AttrString(key, getattr(quantization, key)) for key in _WORDS]
    floats = [ir.AttrFloat32(key, getattr(quantization, key)) for key in _FLOATS]
    return [*words, *floats, *(ir.AttrInt64(key, getattr(quantization, key)) for key in _INTS)]


def quantization_from(attributes: Mapping[str, ir.Attr], scale: Array) -> Quantization:
    """What ``quantization_attributes`` wrote, with the scales."""
    values: dict[str, Any] = {key: attributes[key].as_string() for key in _WORDS}
    values |= {key: attributes[key].as_float() for key in _FLOATS}
    values |= {key: attributes[key].as_int() for key in _INTS}
    return Quantization(scale, **values)


def quantize_linear(x: Array, scale: float, zero: int, dtype: str) -> Array:
    """QuantizeLinear in float32; int32 numbers within the limits of ``dtype``."""
    low, high = LIMITS[dtype]
    divided = x.astype(np.float32) / np.float32(scale)
    limited: Array = np.clip(np.rint(divided) + zero, low, high)
    return limited.astype(np.int32)


def quantize_rows(weight: Array) -> tuple[Array, Array]:
    """W [out, in] -> int8 numbers, symmetric, and float32 scales [out]; zeros stay zero."""
    largest = np.abs(weight).max(axis=1, initial=0).astype(np.float32)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    numbers = np.clip(np.rint(weight / scale[:, None]), -127, 127)
    return numbers.astype(np.int8), scale

"""Activation steps of an epilogue: a name, and numbers where it has some, as in ``clip:0.0:6.0``.

===============================  ================================
step                             meaning
===============================  ================================
relu, gelu, gelu_tanh, silu      as in ONNX; silu is x sigmoid(x)
hard_swish                       x hard_sigmoid(x; 1/6, 1/2)
clip:LOW:HIGH                    x cut to [LOW, HIGH]
leaky_relu:ALPHA                 x where x >= 0, else ALPHA x
hard_sigmoid:ALPHA:BETA          ALPHA x + BETA cut to [0, 1]
===============================  ================================

NaN stays NaN in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Name -> how many numbers follow it.
ACTIVATIONS = {
    "relu": 0,
    "gelu": 0,
    "gelu_tanh": 0,
    "silu": 0,
    "hard_swish": 0,
    "clip": 2,
    "leaky_relu": 1,
    "hard_sigmoid": 2,
}

#: Those that take a few instructions; the others are long.
SHORT = frozenset({"relu", "hard_swish", "clip", "leaky_relu", "hard_sigmoid"})


def step_of(name: str, *numbers: float) -> str:
    """The step as text; its numbers are rounded to float32, in which kernels compute."""
    return ":".join([name, *(str(float(np.float32(number))) for number in numbers)])


def parts_of(step: str) -> tuple[str, tuple[float, ...]]:
    """(name, numbers) of a step."""
    name, *numbers = step.split(":")
    return name, tuple(float(number) for number in numbers)


def is_activation(step: str) -> bool:
    """Whether a step is a well-formed activation."""
    name, *numbers = step.split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        return False
    return ACTIVATIONS.get(name) == len(values) and not any(map(math.isnan, values))


def is_short(step: str) -> bool:
    """Whether an activation takes a few instructions only."""
    return parts_of(step)[0] in SHORT


def _gelu(y: Array) -> Array:
    erf = np.vectorize(math.erf, otypes=[np.float64])
    result: Array = (0.5 * y * (1 + erf(y / math.sqrt(2)))).astype(y.dtype)
    return result


def _gelu_tanh(y: Array) -> Array:
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    result: Array = 0.5 * y * (1 + np.tanh(inner))
    return result


_MEANING: dict[str, Callable[..., Any]] = {
    "relu": lambda y: np.maximum(y, 0),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda y: y / (1 + np.exp(-np.clip(y, -700, None))),
    "hard_swish": lambda y: y * np.clip(y / 6 + 0.5, 0, 1),
    "clip": np.clip,
    "leaky_relu": lambda y, alpha: np.where(y < 0, y.dtype.type(alpha) * y, y),
    "hard_sigmoid": lambda y, alpha, beta: np.clip(alpha * y + beta, 0, 1),
}


def activate(step: str, y: Array) -> Array:
    """The activation in the dtype of ``y``: the reference that kernels are checked against.

    Raises:
        ValueError: the step is no activation.
    """
    if not is_activation(step):
        raise ValueError(f"unknown epilogue step {step!r}")
    name, numbers = parts_of(step)
    result: Array = _MEANING[name](y, *numbers)
    return result


def spelled_out(step: str, x: str, result: str, number: int) -> list[str]:
    """Lines of ONNX text that compute ``result`` from ``x``.

    Args:
        step: The activation.
        x: Name of its argument.
        result: Name of its result.
        number: Of the step, to tell names apart.
    """
    name, numbers = parts_of(step)
    if name == "silu":
        return [f"s{number} = Sigmoid({x})", f"{result} = Mul({x}, s{number})"]
    if name == "clip":
        ends = [f"low{number}", f"high{number}"]
        constants = [
            f"{end} = Constant<value_float: float = {_text(value)}>()"
            for end, value in zip(ends, numbers, strict=True)
        ]
        return [*constants, f"{result} = Clip({x}, {', '.join(ends)})"]
    call = {
        "relu": "Relu",
        "gelu": "Gelu",
        "gelu_tanh": 'Gelu<approximate: string = "tanh">',
        "hard_swish": "HardSwish",
        "leaky_relu": "LeakyRelu<alpha: float = {}>",
        "hard_sigmoid": "HardSigmoid<alpha: float = {}, beta: float = {}>",
    }[name]
    return [f"{result} = {call.format(*map(_text, numbers))}({x})"]


def _text(value: float) -> str:
    """A number as ONNX's text form reads it: with a point, never an infinity."""
    largest = float(np.finfo(np.float32).max)
    return repr(max(-largest, min(largest, value)))

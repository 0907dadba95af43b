"""Activations on one float32, from what every GPU language has: exp, no erf, no infinities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.dialect.activations import parts_of
from bscompile.targets.kernels.code import vector_math


def _sigmoid(x: Any) -> Any:
    return T.float32(1) / (T.float32(1) + T.exp(T.float32(0) - x))


def _gelu_tanh(x: Any) -> Any:
    """0.5 (1 + tanh u) = sigmoid(2 u)."""
    cubic = T.float32(0.044715) * x * x + T.float32(1)
    return x * _sigmoid(T.float32(2 * math.sqrt(2 / math.pi)) * x * cubic)


def _silu(x: Any) -> Any:
    return x * _sigmoid(x)


def _relu(x: Any) -> Any:
    return T.Select(x < T.float32(0), T.float32(0), x)  # NaN stays NaN


def _gelu(x: Any) -> Any:
    return vector_math.gelu(x, 1)


def _clip(x: Any, low: float, high: float) -> Any:
    if math.isfinite(low):
        x = T.Select(x < T.float32(low), T.float32(low), x)
    return T.Select(x > T.float32(high), T.float32(high), x) if math.isfinite(high) else x


def _leaky_relu(x: Any, alpha: float) -> Any:
    return T.Select(x < T.float32(0), T.float32(alpha) * x, x)


def _hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    return _clip(T.float32(alpha) * x + T.float32(beta), 0.0, 1.0)


def _hard_swish(x: Any) -> Any:
    return x * _hard_sigmoid(x, 1 / 6, 0.5)


_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": _relu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "hard_swish": _hard_swish,
    "clip": _clip,
    "leaky_relu": _leaky_relu,
    "hard_sigmoid": _hard_sigmoid,
}


def activate(step: str, x: Any) -> Any:
    """The activation that an epilogue's step names."""
    name, numbers = parts_of(step)
    return _ACTIVATIONS[name](x, *numbers)

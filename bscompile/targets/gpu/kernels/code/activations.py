"""Activations on one float32, from what every GPU language has: exp, no erf, no infinities."""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import tirx as T

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


ACTIVATIONS = {"relu": _relu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu}

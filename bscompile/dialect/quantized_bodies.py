"""Quantising x and y in plain ONNX, as lines of a function's body."""

from __future__ import annotations

from bscompile.dialect.quantization import Quantization

_CODES = {"uint8": 2, "int8": 3}


def quantize_lines(quantization: Quantization) -> tuple[list[str], str]:
    """Lines that quantise ``x`` and widen it again, and the name of the result."""
    if quantization.activation == "static":
        ends = _constants("x", quantization.x_scale, quantization.x_zero, quantization.q_dtype)
        name = "x"
        if quantization.x_dtype == "float32":
            ends.append("xq = QuantizeLinear(x, xscale, xzero)")
            name = "xq"
        return [*ends, f"xd = DequantizeLinear({name}, xscale, xzero)"], "xd"
    rows = quantization.activation == "row"
    axes = "xaxes = Constant<value_ints: ints = [-1]>()"
    over = "(x, xaxes)" if rows else "(x)"
    lines = [
        *([axes] if rows else []),
        "x0 = Constant<value_float: float = 0.0>()",
        "x1 = Constant<value_float: float = 1.0>()",
        "x255 = Constant<value_float: float = 255.0>()",
        f"xmin = ReduceMin<keepdims: int = 1>{over}",
        f"xmax = ReduceMax<keepdims: int = 1>{over}",
        "xlow = Min(xmin, x0)",
        "xhigh = Max(xmax, x0)",
        "xrange = Sub(xhigh, xlow)",
        "xs0 = Div(xrange, x255)",
        "xany = Greater(xs0, x0)",
        "xs = Where(xany, xs0, x1)",
        "xneg = Neg(xlow)",
    ]
    if rows:
        lines += ["xinv = Div(x1, xs)", "xz0 = Mul(xneg, xinv)", "xr = Mul(x, xinv)"]
    else:
        lines += ["xz0 = Div(xneg, xs)", "xr = Div(x, xs)"]
    lines += [
        "xz1 = Round(xz0)",
        "xz = Clip(xz1, x0, x255)",
        "xr1 = Round(xr)",
        "xr2 = Add(xr1, xz)",
        "xq = Clip(xr2, x0, x255)",
        "xc = Sub(xq, xz)",
        "xd = Mul(xc, xs)",
    ]
    return lines, "xd"


def requantize_lines(quantization: Quantization, y: str) -> tuple[list[str], str]:
    """Lines that quantise the value named ``y`` where it leaves so, and the result's name."""
    if quantization.y_dtype == "float32":
        return [], y
    ends = _constants("y", quantization.y_scale, quantization.y_zero, quantization.y_dtype)
    return [*ends, f"yq = QuantizeLinear({y}, yscale, yzero)"], "yq"


def _constants(letter: str, scale: float, zero: int, dtype: str) -> list[str]:
    return [
        f"{letter}scale = Constant<value_float: float = {scale!r}>()",
        f"{letter}zero0 = Constant<value_int: int = {zero}>()",
        f"{letter}zero = Cast<to: int = {_CODES[dtype]}>({letter}zero0)",
    ]

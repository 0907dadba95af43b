"""exp, erf and the activations on vectors of float32, from arithmetic that every lane can do.

TVM turns ``T.exp`` and ``T.erf`` of a vector into one libm call per lane, 10-30 ns each. The
functions here stay in registers, about 0.2 ns per element. Largest errors against float64 over
all finite inputs: exp 2e-7 relative; erf 3e-7 absolute; gelu, gelu_tanh and silu 5e-7 of
max(1, |x|). NaN gives NaN; a result that leaves float32's range becomes inf or 0.
They must not be compiled with the fast-math flag ``reassoc``, which undoes the split of ln 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from bscompile.dialect.activations import parts_of
from bscompile.targets.kernels.code.emit import Expr, constant, splat

# exp(r) on |r| <= ln2 / 2, minimax, lowest power first.
_EXP = (1.0, 1.0, 0.5, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3)
_EXP_LOW, _EXP_HIGH = -86.98, 88.7228317  # about 2**-125.5 and float32's largest
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # n * high is exact for |n| < 2**12

# 2**r on |r| <= 1 / 2, minimax to 8e-8, lowest power first.
_EXP2 = (
    1.0000000717,
    0.69314696706,
    0.24022119721,
    0.055507132751,
    9.6755415026e-3,
    1.3276471959e-3,
)
_ONE_BITS = 0x3F800000

# erf(x) = x p(x²) / q(x²) on |x| <= 3.744, beyond which erf rounds to one; lowest power first.
_ERF_P = (
    1.128379143519084,
    1.8520832239976145e-1,
    5.0955695062380861e-2,
    3.4082910107109506e-3,
    2.2905065861350646e-4,
)
_ERF_Q = (
    1.0,
    4.9746925110067538e-1,
    1.1098505178285362e-1,
    1.4070470171167667e-2,
    1.0179625278914885e-3,
    2.3547966471313185e-5,
    -1.1791602954361697e-7,
)
_ERF_END = 3.7439211627767994


# Φ(-a) = 1 / p(a)⁸ with an error of 1.3e-7 of max(1, 1 / a); lowest power first. So much less than
# erf takes, since nothing has to be cut but where p(a)⁸ is infinite, and the rest exactly zero.
_TAIL = (
    1.09050595,
    1.087903012e-1,
    4.867074091e-2,
    9.800267343e-3,
    4.989116929e-4,
    5.432577349e-4,
    -6.760054445e-5,
    1.895206289e-5,
)
_TAIL_END = 30.0

# 1.5 * 2**23: float32 around it are whole numbers, so adding it rounds to nearest even, and the low
# bits of the sum are the whole number in two's complement. (Taking it away again in float32 would
# not do: TVM cancels the two.)
_WHOLE = 12582912.0
_WHOLE_BITS = 0x4B400000


def _dtype(kind: str, lanes: int) -> str:
    return kind if lanes == 1 else f"{kind}x{lanes}"


def _polynomial(x: Expr, coefficients: tuple[float, ...], lanes: int) -> Expr:
    value = constant(coefficients[-1], lanes)
    for c in reversed(coefficients[:-1]):
        value = T.bind(value * x + constant(c, lanes))
    return value


def _clamp(x: Expr, low: float, high: float, lanes: int) -> Expr:
    """Cut x to [low, high]; the order of the operands keeps NaN."""
    above = T.bind(T.max(constant(low, lanes), x))
    return T.bind(T.min(constant(high, lanes), above))


def nearest(x: Expr, lanes: int) -> Expr:
    """The nearest whole number, ties to even, as int32; for |x| <= 2**22.

    It never truncates: qemu-riscv64 before 8.0 dies of a vector conversion towards zero that
    begins a page of code.
    """
    bits = T.reinterpret(_dtype("int32", lanes), x + constant(_WHOLE, lanes))
    return bits - splat(T.int32(_WHOLE_BITS), lanes)


def exp(x: Expr, lanes: int) -> Expr:
    """Exponential function; 0 below -86.98, where float32 ends soon."""
    x = T.bind(x)
    cut = _clamp(x, _EXP_LOW, _EXP_HIGH, lanes)
    whole = T.bind(nearest(cut * constant(math.log2(math.e), lanes), lanes))
    n = T.bind(T.cast(whole, _dtype("float32", lanes)))
    r = T.bind(cut - n * constant(_LN2_HIGH, lanes) - n * constant(_LN2_LOW, lanes))
    # 2 exp(r) times 2**(n - 1), whose exponent still fits when n is 128.
    bits = T.shift_left(whole + splat(T.int32(126), lanes), splat(T.int32(23), lanes))
    doubled = tuple(2 * c for c in _EXP)
    value = _polynomial(r, doubled, lanes) * T.reinterpret(_dtype("float32", lanes), bits)
    value = T.bind(T.Select(x > constant(_EXP_HIGH, lanes), constant(math.inf, lanes), value))
    return T.bind(T.Select(x < constant(_EXP_LOW, lanes), constant(0.0, lanes), value))


def exp_of_negative(x: Expr, lanes: int) -> Expr:
    """exp(x) of x <= 0 for weights beside one of 1, as of a softmax, in two thirds of the time.

    Relative error 2e-7 + |x| 1e-7: a weight e**-10 is right to 1e-6 of itself, 1e-10 of the sum.
    0 below -86.98.
    """
    x = T.bind(x)
    power = T.bind(x * constant(math.log2(math.e), lanes))
    cut = T.bind(T.max(constant(_EXP_LOW * math.log2(math.e), lanes), power))  # this keeps NaN
    bits = T.bind(T.reinterpret(_dtype("int32", lanes), cut + constant(_WHOLE, lanes)))
    whole = T.cast(bits - splat(T.int32(_WHOLE_BITS), lanes), _dtype("float32", lanes))
    value = _polynomial(T.bind(cut - whole), _EXP2, lanes)
    # The shift drops all of _WHOLE_BITS.
    bits = T.shift_left(bits, splat(T.int32(23), lanes)) + splat(T.int32(_ONE_BITS), lanes)
    value = value * T.reinterpret(_dtype("float32", lanes), bits)
    return T.bind(T.Select(x < constant(_EXP_LOW, lanes), constant(0.0, lanes), value))


def erf(x: Expr, lanes: int) -> Expr:
    """The error function."""
    x = T.bind(x)
    cut = _clamp(x, -_ERF_END, _ERF_END, lanes)
    square = T.bind(cut * cut)
    ratio = _polynomial(square, _ERF_P, lanes) / _polynomial(square, _ERF_Q, lanes)
    value = T.bind(cut * ratio)
    # Exactly one at the ends, so that gelu of a large negative number is exactly zero.
    value = T.bind(T.Select(x >= constant(_ERF_END, lanes), constant(1.0, lanes), value))
    return T.bind(T.Select(x <= constant(-_ERF_END, lanes), constant(-1.0, lanes), value))


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + exp(-x))."""
    one = constant(1.0, lanes)
    return one / (one + exp(constant(0.0, lanes) - x, lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """Hyperbolic tangent; absolute error 2e-7."""
    return constant(2.0, lanes) * sigmoid(x + x, lanes) - constant(1.0, lanes)


def relu(x: Expr, lanes: int) -> Expr:
    """max(x, 0)."""
    return T.max(constant(0.0, lanes), x)  # in this order NaN stays NaN


def gelu(x: Expr, lanes: int) -> Expr:
    """Gaussian error linear unit x Φ(x) = max(x, 0) - |x| Φ(-|x|)."""
    x = T.bind(x)
    size = T.bind(T.min(constant(_TAIL_END, lanes), T.fabs(x)))
    power = _polynomial(size, _TAIL, lanes)
    for _ in range(3):
        power = T.bind(power * power)
    return relu(x, lanes) - size / power


def gelu_tanh(x: Expr, lanes: int) -> Expr:
    """GELU's tanh approximation: 0.5 (1 + tanh u) = sigmoid(2 u)."""
    x = T.bind(x)
    cubic = constant(0.044715, lanes) * x * x + constant(1.0, lanes)
    u = x * cubic * constant(2 * math.sqrt(2 / math.pi), lanes)
    return x * sigmoid(u, lanes)


def silu(x: Expr, lanes: int) -> Expr:
    """Sigmoid linear unit x sigmoid(x)."""
    x = T.bind(x)
    return x * sigmoid(x, lanes)


def clip(x: Expr, lanes: int, low: float, high: float) -> Expr:
    """X cut to [low, high]."""
    return _clamp(x, low, high, lanes)


def leaky_relu(x: Expr, lanes: int, alpha: float) -> Expr:
    """X where it is not negative, else alpha x."""
    x = T.bind(x)
    return T.Select(x < constant(0.0, lanes), constant(alpha, lanes) * x, x)


def hard_sigmoid(x: Expr, lanes: int, alpha: float, beta: float) -> Expr:
    """Alpha x + beta cut to [0, 1]."""
    return _clamp(constant(alpha, lanes) * x + constant(beta, lanes), 0.0, 1.0, lanes)


def hard_swish(x: Expr, lanes: int) -> Expr:
    """X hard_sigmoid(x) with a slope of 1/6 around 1/2."""
    x = T.bind(x)
    return x * hard_sigmoid(x, lanes, 1 / 6, 0.5)


_ACTIVATIONS: dict[str, Callable[..., Expr]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "hard_swish": hard_swish,
    "clip": clip,
    "leaky_relu": leaky_relu,
    "hard_sigmoid": hard_sigmoid,
}


def activate(step: str, x: Expr, lanes: int) -> Expr:
    """The activation that an epilogue's step names."""
    name, numbers = parts_of(step)
    return _ACTIVATIONS[name](x, lanes, *numbers)

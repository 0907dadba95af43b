"""HVX instructions as expressions on vectors of 32 words."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code.emit import Expr

LANES = 32
_WORDS = "int32x32"


def _call(name: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(f"llvm.hexagon.V6.{name}.128B", *arguments, dtype=_WORDS)


def multiply_add(total: Expr, x: Expr, weight: Expr) -> Expr:
    """The total plus Σ x w over the four bytes of each word: x unsigned, w signed (vrmpy)."""
    return _call("vrmpybusv.acc", total, x, weight)


def high_product(a: Expr, b: Expr) -> Expr:
    """A b / 2^31, rounded: vmpye and vmpyo."""
    a, b = T.bind(a), T.bind(b)
    return _call("vmpyowh.rnd.sacc", _call("vmpyewuh", a, b), a, b)


def turned(vector: Expr) -> Expr:
    """The vector with its halves exchanged (vror by 64 bytes)."""
    return _call("vror", vector, T.int32(64))


def halves(low: Expr, high: Expr) -> Expr:
    """Lanes 0 to 15 of one vector, 16 to 31 of the other."""
    lanes = T.ramp(T.int32(0), 1, LANES) < T.broadcast(T.int32(16), LANES)
    return T.Select(lanes, low, high)


def splat(value: Expr) -> Expr:
    """A word in every lane."""
    return T.broadcast(value, LANES)


def zeros() -> Expr:
    """All zero."""
    return splat(T.int32(0))


def packed(parts: list[Expr], dtype: str) -> Expr:
    """128 bytes from four vectors of words, each word brought to the nearest number of ``dtype``.

    vpackwh keeps what fits 16 bits, vpackhub and vpackhb what fits 8.
    """
    first, second, third, last = parts
    name = "vpackhub.sat" if dtype == "uint8" else "vpackhb.sat"
    low, high = _call("vpackwh.sat", second, first), _call("vpackwh.sat", last, third)
    return T.reinterpret(f"{dtype}x{4 * LANES}", _call(name, high, low))

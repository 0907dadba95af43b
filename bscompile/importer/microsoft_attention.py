"""Attention of com.microsoft, as onnxruntime's optimizer writes it, in standard operators.

    q, k, v = Split(x W + b)  or given,  heads [b, h, s, d]
    y = softmax(scale q kᵀ + masked + bias) v

A mask says which keys count: those that are not 0 of [b, t] or [b, s, t], or the first n of [b].
What does not count gets ``mask_filter_value`` added to its scores, as onnxruntime does, not
minus infinity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bscompile.importer.microsoft_operators import Call

_FUTURE = -3.4028234663852886e38  # the lowest float32


def attention(call: Call) -> str:
    """``Attention``: one weight for queries, keys and values."""
    bias = "qkv = Add(product, bias)" if call.has("bias") else "qkv = Identity(product)"
    return f"product = MatMul(x, weight)  {bias}  {_fused(call)}"


def quantized_attention(call: Call) -> str:
    """``QAttention``: the same with x and the weight in 8 bits."""
    points = "".join(f", {n}" for n in ("x_zero", "weight_zero") if call.has(n))
    if call.has("weight_zero") and not call.has("x_zero"):
        call.refuse("a zero point of the weight without one of the input")
    return (
        f"whole = MatMulInteger(x, weight{points})  product = Cast <to = 1> (whole)"
        "  scale = Mul(x_scale, weight_scale)  scaled = Mul(product, scale)"
        f"  qkv = Add(scaled, bias)  {_fused(call)}"
    )


def multi_head_attention(call: Call) -> str:
    """``MultiHeadAttention``: queries, keys and values [b, s, n] of their own."""
    if not (call.has("key") and call.has("value")):
        call.refuse("queries, keys and values packed into one tensor")
    for name in ("query", "key", "value"):
        if call.rank(name) not in (3, None):
            call.refuse(f"a {name} with {call.rank(name)} axes, not [batch, sequence, hidden]")
    lines = []
    if call.has("bias"):
        lines.append(
            "width = Shape <start = -1> (query)  zero = Constant <value_ints = [0]> ()"
            "  twice = Add(width, width)  rest = Constant <value_ints = [9223372036854775807]> ()"
            "  bq = Slice(bias, zero, width)  bk = Slice(bias, width, twice)"
            "  bv = Slice(bias, twice, rest)"
            "  q0 = Add(query, bq)  k0 = Add(key, bk)  v0 = Add(value, bv)"
        )
    else:
        lines.append("q0 = Identity(query)  k0 = Identity(key)  v0 = Identity(value)")
    return "  ".join([*lines, _products(call, None)])


def _fused(call: Call) -> str:
    """From qkv on."""
    total = call.dims("weight")[-1:]
    sizes = call.ints("qkv_hidden_sizes") or [size // 3 for size in total] * 3
    heads = call.number("num_heads")
    if not sizes or sum(sizes) != total[0]:
        call.refuse(f"a weight of {total[0] if total else 'unknown'} outputs, not those of {sizes}")
    if any(size % heads for size in sizes) or sizes[0] != sizes[1]:
        call.refuse(f"{heads} heads of {sizes} features")
    cut = f"sizes = Constant <value_ints = {sizes}> ()  q0, k0, v0 = Split <axis = -1> (qkv, sizes)"
    return f"{cut}  {_products(call, sizes[0] // heads)}"


def _products(call: Call, inside: int | None) -> str:
    """From q0, k0, v0 [b, s, n] on; ``inside`` features of a head of q, None for unknown."""
    heads = call.number("num_heads")
    scale = call.real("scale", 0.0)
    if scale == 0.0 and inside is None:
        factor = (
            "row = Shape <start = -1> (q)  width1 = Cast <to = 1> (row)  root = Sqrt(width1)"
            "  one = Constant <value_float = 1.0> ()  factor = Div(one, root)"
        )
    else:
        number = scale or float(inside or 1) ** -0.5
        factor = f"factor = Constant <value_float = {number!r}> ()"
    turns = "  ".join(
        f"{n}1 = Reshape({n}0, cut)  {n} = Transpose <perm = [0, 2, {last}]> ({n}1)"
        for n, last in (("q", "1, 3"), ("k", "3, 1"), ("v", "1, 3"))
    )
    lines, scores = _masked(call)
    return "  ".join(
        [
            f"cut = Constant <value_ints = [0, 0, {heads}, -1]> ()  {turns}  {factor}",
            "product1 = MatMul(q, k)  scores = Mul(product1, factor)",
            *lines,
            f"weights = Softmax <axis = -1> ({scores})  z0 = MatMul(weights, v)",
            "z = Transpose <perm = [0, 2, 1, 3]> (z0)",
            "joined = Constant <value_ints = [0, 0, -1]> ()  y = Reshape(z, joined)",
        ]
    )


def _masked(call: Call) -> tuple[list[str], str]:
    """(lines that add to the scores, the name of what comes out)."""
    lines, scores = [], "scores"
    if call.has("mask"):
        low = call.real("mask_filter_value", -10000.0)
        axes = {1: [1, 2], 2: [1, 2], 3: [1]}.get(call.rank("mask") or 0)
        if axes is None:
            call.refuse(f"a mask with {call.rank('mask') or 'an unknown number of'} axes")
        lines.append(_kept(call) + f"  axes = Constant <value_ints = {axes}> ()")
        lines.append(
            "nothing = Constant <value_float = 0.0> ()"
            f"  low = Constant <value_float = {low!r}> ()  off = Where(kept, nothing, low)"
            f"  off1 = Unsqueeze(off, axes)  masked = Add({scores}, off1)"
        )
        scores = "masked"
    if call.has("more"):
        lines.append(f"biased = Add({scores}, more)")
        scores = "biased"
    if call.number("unidirectional", 0):
        lines.append(
            f"{_positions('s', -2)}  {_positions('t', -1)}"
            "  columns = Unsqueeze(at_s, last)  later = Greater(at_t, columns)"
            f"  future = Constant <value_float = {_FUTURE!r}> ()"
            "  none = Constant <value_float = 0.0> ()  ahead = Where(later, future, none)"
            f"  causal = Add({scores}, ahead)"
        )
        lines.insert(0, "last = Constant <value_ints = [-1]> ()")
        scores = "causal"
    return lines, scores


def _kept(call: Call) -> str:
    """Which keys count, bool [b, t] or [b, s, t]."""
    if call.rank("mask") == 1:
        (length,), batch = call.dims("mask"), call.dims(call.roles[0])[:1]
        if isinstance(length, int) and batch and isinstance(batch[0], int) and length != batch[0]:
            call.refuse(f"a mask of {length} numbers for a batch of {batch[0]}")
        return (
            f"{_positions('key', -1)}  length = Cast <to = 7> (mask)"
            "  column = Constant <value_ints = [1]> ()  lengths = Unsqueeze(length, column)"
            "  kept = Less(at_key, lengths)"
        )
    return (
        "number = Cast <to = 7> (mask)  no = Constant <value_int = 0> ()"
        "  kept = Greater(number, no)"
    )


def _positions(name: str, axis: int) -> str:
    """at_NAME = 0, 1, .. along an axis of the scores."""
    end = f", end = {axis + 1}" if axis < -1 else ""
    return (
        f"size_{name} = Shape <start = {axis}{end}> (scores)"
        f"  from_{name} = Constant <value_int = 0> ()"
        f"  by_{name} = Constant <value_int = 1> ()  to_{name} = Squeeze(size_{name})"
        f"  at_{name} = Range(from_{name}, to_{name}, by_{name})"
    )

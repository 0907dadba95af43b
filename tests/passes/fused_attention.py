"""Attention whose queries, keys and values are one layer, as exporters write it."""

import numpy as np

from tests.passes.helpers import blocky, dense

BATCH, STEPS, WIDTH = 2, 24, 64
_HEAD = "g (float[2, 24, 64] x) => (float[2, 24, 64] y) {{"
_TURNED = "  ".join(f"{n} = Transpose <perm = [0, 2, 1, 3]> ({n}1)" for n in "qkv")
_CUT = "  ".join(f"{n}1 = Reshape({n}0, cut)" for n in "qkv") + "  " + _TURNED
_PRODUCTS = """
    t = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul(q, t)  s = Mul(s0, scale)  p = Softmax <axis = -1> (s)
    z0 = MatMul(p, v)  z1 = Transpose <perm = [0, 2, 1, 3]> (z0)  z = Reshape(z1, whole)
    y = MatMul(z, out)
}}"""
_GATHERED = "  ".join(f"{n}%s = Gather <axis = {{axis}}> (all, at{i})" for i, n in enumerate("qkv"))

_THIRDS = "q, k, v = Split <axis = -1, num_outputs = 3> (all)"

#: Spelling -> (how qkv becomes q, k, v [b, h, s, d], whether its rows are [h, 3, d]).
SPELLINGS = {
    "split": (f"q0, k0, v0 = Split <axis = -1> (qkv, sizes)  {_CUT}", False),
    "slices": (
        "  ".join(
            f"{n}0 = Slice(qkv, edge{i}, edge{i + 1}, last)" for i, n in enumerate("qkv")
        )
        + f"  {_CUT}",
        False,
    ),
    "unbind": (
        "five = Reshape(qkv, three)  all = Transpose <perm = [2, 0, 3, 1, 4]> (five)  "
        + (_GATHERED % ("", "", "")).format(axis=0),
        False,
    ),
    "squeezed": (
        "five = Reshape(qkv, three)  all = Transpose <perm = [2, 0, 3, 1, 4]> (five)  "
        "q1, k1, v1 = Split <axis = 0, num_outputs = 3> (all)  "
        + "  ".join(f"{n} = Squeeze({n}1, first)" for n in "qkv"),
        False,
    ),
    "within heads": (
        "four = Reshape(qkv, triple)  all = Transpose <perm = [0, 2, 1, 3]> (four)  " + _THIRDS,
        True,
    ),
    "gathered within heads": (
        "all = Reshape(qkv, inner)  " + (_GATHERED % ("1", "1", "1")).format(axis=3)
        + f"  {_TURNED}",
        True,
    ),
}  # fmt: skip

#: torch's MultiheadAttention: steps first, batch and heads one axis.
TORCH = """g (float[2, 24, 64] x) => (float[2, 24, 64] y) {
    r = Transpose <perm = [1, 0, 2]> (x)
    product = MatMul(r, w)  qkv = Add(product, b)
    four = Reshape(qkv, three_torch)  wide = Unsqueeze(four, first)
    turned = Transpose <perm = [3, 1, 2, 0, 4]> (wide)  all = Squeeze(turned, third)
    q0 = Gather <axis = 0> (all, at0)  k0 = Gather <axis = 0> (all, at1)
    v0 = Gather <axis = 0> (all, at2)
    q1 = Reshape(q0, merged)  k1 = Reshape(k0, merged)  v1 = Reshape(v0, merged)
    q = Transpose <perm = [1, 0, 2]> (q1)  k = Transpose <perm = [1, 2, 0]> (k1)
    v = Transpose <perm = [1, 0, 2]> (v1)  c = Mul(q, scale)
    s = MatMul(c, k)  p = Softmax <axis = -1> (s)
    z0 = MatMul(p, v)  z1 = Transpose <perm = [1, 0, 2]> (z0)  z = Reshape(z1, whole_torch)
    y0 = MatMul(z, out)  y1 = Reshape(y0, back)  y = Transpose <perm = [1, 0, 2]> (y1)
}"""


def text_of(spelling: str) -> str:
    """The graph of one spelling."""
    if spelling == "torch":
        return TORCH
    cut, _ = SPELLINGS[spelling]
    text = _HEAD + " product = MatMul(x, w)  qkv = Add(product, b)  " + cut + _PRODUCTS
    return text.format()


def constants(heads: int, inside: int) -> dict[str, np.ndarray]:
    """Everything but the weights."""
    size = heads * inside
    return {
        "cut": np.array([BATCH, STEPS, heads, inside]),
        "three": np.array([BATCH, STEPS, 3, heads, inside]),
        "triple": np.array([BATCH, STEPS, heads, 3 * inside]),
        "inner": np.array([BATCH, STEPS, heads, 3, inside]),
        "three_torch": np.array([STEPS, BATCH, 3, size]),
        "merged": np.array([STEPS, BATCH * heads, inside]),
        "whole_torch": np.array([STEPS * BATCH, size]),
        "back": np.array([STEPS, BATCH, WIDTH]),
        "whole": np.array([BATCH, STEPS, size]),
        "sizes": np.array([size] * 3),
        "first": np.array([0]), "third": np.array([-2]), "last": np.array([-1]),
        **{f"edge{i}": np.array([i * size]) for i in range(4)},
        **{f"at{i}": np.array(i) for i in range(3)},
        "scale": np.float32([inside**-0.5]),
    }  # fmt: skip


def weights(
    spelling: str, heads: int, inside: int, block: int, orders: tuple[np.ndarray, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """(weights by name with queries, keys and values reordered, the four W [out, in] in order).

    Args:
        spelling: How the rows of the fused layer lie.
        heads: Their number.
        inside: Features of a head.
        block: Side of the zero blocks.
        orders: Of the features of queries and keys, and of values; each head's its own, or heads.
    """
    size = heads * inside
    parts = [blocky((size, WIDTH), (block, block), 0.3, seed=s) for s in range(3)]
    parts = [np.where(w.any(axis=1, keepdims=True), w, 0.0).astype(np.float32) for w in parts]
    out = blocky((WIDTH, size), (block, block), 0.3, seed=3)
    biases = [dense(size, seed=s + 4) for s in range(3)]
    orders = (orders[0], orders[0], orders[1])
    within = spelling != "torch" and SPELLINGS[spelling][1]

    def fused(arrays: list[np.ndarray]) -> np.ndarray:
        moved = np.stack([a[order] for a, order in zip(arrays, orders, strict=True)])
        moved = moved.reshape(3, heads, inside, -1)
        return (moved.swapaxes(0, 1) if within else moved).reshape(3 * size, -1)

    named = {
        "w": np.ascontiguousarray(fused(parts).T), "b": fused(biases)[:, 0],
        "out": np.ascontiguousarray(out[:, orders[2]].T), **constants(heads, inside),
    }  # fmt: skip
    used = text_of(spelling)
    return {n: a for n, a in named.items() if n in _words(used)}, [*parts, out]


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())

"""Attention as each target's kernel meets it: masks, storage orders, odd sizes, and in float64."""

from __future__ import annotations

import numpy as np

from bscompile.targets.cpu.code.tensors import Tensor

#: (queries, keys, d, e, orders of q k v out, mask's axes of size one or None for no mask)
CASES = {
    "bert": (70, 70, 16, 16, ("bshd", "bthd", "bthe", "bshe"), "hs"),
    "causal": (33, 33, 8, 8, ("bhsd", "bhtd", "bhte", "bhse"), "bh"),
    "plain, K turned": (9, 65, 20, 12, ("bhsd", "bhdt", "bhte", "bhse"), None),
    "one tile": (7, 7, 5, 3, ("bhsd", "bhtd", "bhte", "bshe"), "h"),
    "queries without a key": (12, 40, 8, 8, ("bhsd", "bhtd", "bhte", "bhse"), "bh"),
    "one query": (1, 130, 24, 16, ("bshd", "bthd", "bthe", "bshe"), "bhs"),
}
B, H = 2, 2


def operands(case, rng):
    """(tensors of q, k and v, that of the mask or None, that of the result, arrays as stored)."""
    s, t, d, e, orders, ones = CASES[case]
    lengths = {"b": B, "h": H, "s": s, "t": t, "d": d, "e": e}
    tensors, arrays = [], []
    for name, order in zip("qkv", orders, strict=False):
        shape = tuple(lengths[axis] for axis in order)
        tensors.append(Tensor(name, order, shape))
        arrays.append(rng.standard_normal(shape).astype(np.float32))
    mask = None
    if ones is not None:
        shape = tuple(1 if axis in ones else lengths[axis] for axis in "bhst")
        mask = Tensor("mask", "bhst", shape)
        if "without" in case:
            values = np.zeros(shape)
            values[:, :, ::3] = -np.inf
        elif case == "causal":  # whole tiles of keys are masked for the first queries
            values = np.triu(np.full((s, t), -np.inf, np.float32), 1)[None, None]
        else:
            values = np.where(rng.random(shape) < 0.3, -1e9, rng.standard_normal(shape))
        arrays.append(values.astype(np.float32))
    out = Tensor("out", orders[3], tuple(lengths[axis] for axis in orders[3]))
    return tensors, mask, out, arrays


def wanted(tensors, mask, arrays, scale, narrow):
    """[b, h, s, e] in float64 of operands rounded to ``narrow``; NaN counts as no weight."""

    def plain(tensor, array, axes):
        array = array.astype(narrow).astype(np.float64)
        return np.einsum(array, [ord(a) - 97 for a in tensor.axes], [ord(a) - 97 for a in axes])

    q, k, v = (
        plain(tensor, array, axes)
        for tensor, array, axes in zip(tensors, arrays, ("bhsd", "bhtd", "bhte"), strict=False)
    )
    scores = scale * q @ k.transpose(0, 1, 3, 2)
    if mask is not None:
        scores = scores + arrays[3].astype(np.float64)
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = powers / powers.sum(axis=-1, keepdims=True)
    return np.nan_to_num(weights) @ v

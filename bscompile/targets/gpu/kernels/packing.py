"""How weights are laid out for the kernels: outputs last, so that neighbours read neighbours."""

from __future__ import annotations

import numpy as np

from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets.base import Array
from bscompile.targets.kernels.packing import pack_block_rows

Operands = tuple[tuple[str, Array], ...]


def as_stored(values: Array, dtype: str) -> Array:
    """Contiguous numbers in ``float32`` or ``float16``, or the bits of float16 as ``uint16``."""
    if dtype == "uint16":
        return np.ascontiguousarray(values, np.float16).view(np.uint16)
    return np.ascontiguousarray(values, dtype)


def pack_panels(weight: Array, width: int, dtype: str) -> Array:
    """A dense weight [n, k] as panels [ceil(n / width), k, width], zeros beyond n."""
    n, k = weight.shape
    count = -(-n // width)
    padded = np.zeros((count * width, k), weight.dtype)
    padded[:n] = weight
    return as_stored(padded.reshape(count, width, k).transpose(0, 2, 1), dtype)


def pack_blocks(weight: BlockSparseMatrix, dtype: str) -> Operands:
    """Values [nnzb, bw, bh], starts int32 [nnzb], indptr int32 [block rows + 1].

    Blocks that reach over the last input are moved back, so x is never read past its end.
    """
    values, starts, indptr, _ = pack_block_rows(weight, 1, wide=True)
    return (("values", as_stored(values[1], dtype)), starts, indptr)


def pack_factors(weight: KroneckerSum, width: int, dtype: str) -> Operands:
    """The live coefficients in block-row order and the factors side by side.

    Args:
        weight: The layer.
        width: What the columns of the factors are padded to a multiple of.
        dtype: As ``as_stored``.

    Returns:
        coefficients [nnz, r], indices int32 [nnz], indptr int32 [block rows + 1],
        factors [bw, r bh padded].
    """
    support = weight.support
    rows, cols = np.nonzero(support)
    coefficients = weight.a[:, rows, cols].T
    if not len(rows):  # buffers have at least one element
        coefficients, cols = np.zeros((1, weight.rank), weight.a.dtype), np.zeros(1, np.int64)
    bw = weight.block[1]
    flat = weight.b.transpose(2, 0, 1).reshape(bw, -1)  # [bw, r, bh]
    factors = np.zeros((bw, -(-flat.shape[1] // width) * width), flat.dtype)
    factors[:, : flat.shape[1]] = flat
    return (
        ("coefficients", as_stored(coefficients, dtype)),
        ("indices", cols.astype(np.int32)),
        ("indptr", np.concatenate([[0], np.cumsum(support.sum(axis=1))]).astype(np.int32)),
        ("factors", as_stored(factors, dtype)),
    )

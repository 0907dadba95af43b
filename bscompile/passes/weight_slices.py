"""Rows and columns of a weight in any form: which are zero, and the weight without some.

Rows are outputs and columns inputs, W [out, in].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.dialect import Weight
from bscompile.formats import BlockSparseMatrix, KroneckerSum

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]


def zero_rows(weight: Weight) -> Mask:
    """Bool [out]: rows without a non-zero entry."""
    if isinstance(weight, KroneckerSum):
        weight = weight.to_block_sparse()
    if isinstance(weight, BlockSparseMatrix):
        live = np.zeros((weight.block_rows, weight.block[0]), bool)
        np.logical_or.at(live, weight.row_ids, weight.values.any(axis=2))
        return ~live.reshape(-1)[: weight.shape[0]]
    return np.asarray(~weight.any(axis=1))


def zero_columns(weight: Weight) -> Mask:
    """Bool [in]: columns without a non-zero entry."""
    return zero_rows(weight.T if isinstance(weight, np.ndarray) else weight.transpose())


def granularity(weight: Weight) -> tuple[int, int]:
    """How many rows and columns must go together for the blocks to stay as they are."""
    if isinstance(weight, np.ndarray) or not weight.density:
        return 1, 1
    return weight.block


def take_rows(weight: Weight, keep: Index) -> Weight | None:
    """The kept rows, in the same form; None where Kronecker factors cannot express them."""
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(weight[keep])
    side = weight.block[0]
    blocks = keep[::side] // side
    whole = np.array_equal((blocks[:, None] * side + np.arange(side)).reshape(-1), keep)
    if isinstance(weight, KroneckerSum):
        return KroneckerSum(np.ascontiguousarray(weight.a[:, blocks]), weight.b) if whole else None
    if whole:
        return weight.take_block_rows(blocks)
    return BlockSparseMatrix.from_dense(weight.to_dense()[keep], weight.block)


def take_columns(weight: Weight, keep: Index) -> Weight | None:
    """The kept columns, in the same form; None where Kronecker factors cannot express them."""
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(weight[:, keep])
    rows = take_rows(weight.transpose(), keep)
    return None if rows is None or isinstance(rows, np.ndarray) else rows.transpose()


def stored(weight: Weight) -> int:
    """Numbers that a kernel reads for the weight."""
    if isinstance(weight, KroneckerSum):
        return int(weight.support.sum()) * weight.rank + int(weight.b.size)
    return int(weight.values.size if isinstance(weight, BlockSparseMatrix) else weight.size)

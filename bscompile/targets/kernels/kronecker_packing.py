"""How the factors of a layer are laid out for the kernels."""

from __future__ import annotations

import numpy as np

from bscompile.dialect.precision import PRECISIONS, rounded
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Array
from bscompile.targets.kernels.packing import Operands, balance, stored


def pack_factors(weight: KroneckerSum, tasks: int, precision: str = "float32") -> Operands:
    """The live coefficients in block-row order, in float32, and the transposed factors.

    Args:
        weight: The factors.
        tasks: Parallel tasks.
        precision: What both are rounded to, and the factors are stored in.

    Returns:
        steps int32 [nnz, r + 1 or r + 2, even]: the bits of a first coefficient, its q, the bits
        of the others; indptr int32 [m1 + 1]; factors [r, bw, bh]; bounds int32 [tasks + 1]
        (block rows of each task).
    """
    coefficients, columns, live = _live(weight)
    values = rounded(coefficients, PRECISIONS[precision]).astype(np.float32)
    return (
        ("steps", _steps(values.view(np.int32), columns)),
        ("indptr", _starts(live)),
        ("factors", stored(weight.b, precision).transpose(0, 2, 1).copy(order="C")),
        ("bounds", balance(live, tasks)),
    )


def pack_factor_words(weight: KroneckerSum, tasks: int, *, paired: bool) -> Operands:
    """Coefficients and factors as words of two bfloat16, the first in the low half.

    Args:
        weight: The factors.
        tasks: Parallel tasks.
        paired: Whether a coefficient's word holds two terms of one q, else one term of two.

    Returns:
        coefficients int32 [steps, r / 2 rounded up] or [steps, r], indices int32 [steps, 1] or
        [steps, 2] (the q of each), indptr int32 [m1 + 1] (steps of each block row),
        factors int32 [r, bw / 2, bh], pairs of inputs of each Bᵢ; bounds int32 [tasks + 1].
    """
    coefficients, columns, live = _live(weight)
    values, rank = stored(coefficients, "bfloat16"), weight.rank
    if paired:
        words = np.pad(values, ((0, 0), (0, rank % 2)))
        columns, indptr = columns[:, None], _starts(live)
    else:
        indptr = _starts(-(-live // 2))
        row = np.repeat(np.arange(len(live)), live)
        place = np.arange(len(row)) - _starts(live)[row]
        step = indptr[row] + place // 2
        size = max(1, int(indptr[-1]))
        words = np.zeros((size, rank, 2), np.uint16)
        both = np.zeros((size, 2), np.int32)
        both[step] = columns[: len(row), None]  # an odd one is paired with itself times nought
        words[step, :, place % 2] = values[: len(row)]
        both[step, place % 2] = columns[: len(row)]
        columns = both
    factors = stored(weight.b, "bfloat16").transpose(0, 2, 1)
    _, bw, bh = factors.shape
    pairs = factors.reshape(rank, bw // 2, 2, bh).transpose(0, 1, 3, 2)
    return (
        ("coefficients", words.reshape(len(words), -1).view(np.int32)),
        ("indices", columns),
        ("indptr", indptr),
        ("factors", pairs.copy(order="C").view(np.int32).reshape(rank, bw // 2, bh)),
        ("bounds", balance(live, tasks)),
    )


def _live(weight: KroneckerSum) -> tuple[Array, Array, Array]:
    """Coefficients [nnz, r] and their q int32 [nnz], of each block row their number.

    At least one step, since TVM's buffers have at least one element.
    """
    support = weight.support
    rows, columns = np.nonzero(support)
    coefficients = weight.a[:, rows, columns].T
    if not len(rows):
        coefficients, columns = np.zeros((1, weight.rank), weight.a.dtype), np.zeros(1, np.int64)
    return np.ascontiguousarray(coefficients), columns.astype(np.int32), support.sum(axis=1)


def _steps(bits: Array, columns: Array) -> Array:
    """[first, q, others] of each step, in whole pairs."""
    steps = np.zeros((len(columns), 2 * (bits.shape[1] // 2 + 1)), np.int32)
    steps[:, 0], steps[:, 1] = bits[:, 0], columns
    steps[:, 2 : bits.shape[1] + 1] = bits[:, 1:]
    return steps


def _starts(lengths: Array) -> Array:
    """Where consecutive runs begin, and where the last ends: int32."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)

"""How block-sparse weights are laid out for the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.dialect.precision import PRECISIONS, rounded
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Array, HardwareSpec, Problem

Operands = tuple[tuple[str, Array], ...]

#: Precisions that kernels multiply in float32, having widened each weight as it is loaded.
WIDENED = ("float32", "bfloat16", "float16")


def widens(problem: Problem, hardware: HardwareSpec) -> bool:
    """Whether the machine can load a problem's weights as float32."""
    if problem.dtype == "float16" and hardware.isa != "neon":
        return "f16c" in hardware.features
    return problem.dtype in WIDENED


def stored(weight: Array, precision: str) -> Array:
    """A weight as such kernels load it; TVM's code generator keeps bfloat16 only as bits."""
    narrow = np.ascontiguousarray(rounded(weight, PRECISIONS[precision]))
    return narrow.view(np.uint16) if precision == "bfloat16" else narrow


def pack_block_rows(matrix: BlockSparseMatrix, tasks: int, precision: str = "float32") -> Operands:
    """Block rows for kernels that read x in place.

    A block that reaches over the last input is moved back to end there; its values move with
    it and the inputs that it then covers twice get zeros. So x is never read past its end.

    Returns:
        values [nnzb, bw, bh], starts int32 [nnzb] (first input of each block),
        indptr int32 [block rows + 1], bounds int32 [tasks + 1] (block rows of each task).
    """
    bh, bw = matrix.block
    k = matrix.shape[1]
    values = stored(matrix.values, precision).transpose(0, 2, 1)  # [nnzb, bw, bh]
    starts = matrix.indices.astype(np.int64) * bw
    if bw > k:
        values, bw = values[:, :k], k
    packed = values.copy(order="C")
    over = starts + bw > k
    if over.any():
        shift = int((starts[over] + bw - k).max())
        packed[over, shift:] = values[over, : bw - shift]
        packed[over, :shift] = 0
        starts[over] = k - bw
    if not len(packed):  # TVM buffers have at least one element
        packed, starts = np.zeros((1, bw, bh), packed.dtype), np.zeros(1, np.int64)
    return (
        ("values", packed),
        ("starts", starts.astype(np.int32)),
        ("indptr", matrix.indptr),
        ("bounds", balance(np.diff(matrix.indptr), tasks)),
    )


def balance(blocks: npt.NDArray[Any], tasks: int) -> npt.NDArray[np.int32]:
    """Cut block rows into consecutive ranges of nearly equal work.

    Args:
        blocks: Live blocks of each block row.
        tasks: Number of ranges.

    Returns:
        int32 [tasks + 1]: where each range begins; the first is 0, the last the row count.
    """
    done = np.concatenate([[0], np.cumsum(blocks + 1)])  # an empty row still stores its outputs
    targets = done[-1] * np.arange(tasks + 1) / tasks
    after = np.searchsorted(done, targets)
    before = np.maximum(after - 1, 0)
    nearer = targets - done[before] < done[np.minimum(after, len(blocks))] - targets
    bounds = np.where(nearer, before, after)
    bounds[0], bounds[-1] = 0, len(blocks)
    return np.maximum.accumulate(bounds).astype(np.int32)

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


def pack_block_rows(
    matrix: BlockSparseMatrix,
    tasks: int,
    precision: str = "float32",
    *,
    chunks: int = 1,
    wide: bool = False,
) -> Operands:
    """Block rows for kernels that read x in place.

    A block that reaches over the last input is moved back to end there; its values move with
    it and the inputs that it then covers twice get zeros. So x is never read past its end.

    Args:
        matrix: W.
        tasks: Parallel tasks.
        precision: Of the values.
        chunks: Chunks of columns whose block rows follow each other, see ``stacked``.
        wide: Whether starts are int32 for any k.

    Returns:
        values [nnzb, bw, bh], starts [nnzb] (first input of each block, see ``first_inputs``),
        indptr int32 [chunks * block rows + 1], bounds int32 [tasks + 1] (block rows of each task).
    """
    bounds = balance(np.diff(matrix.indptr), tasks)
    matrix = stacked(matrix, chunks)
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
        ("starts", starts.astype(np.int32) if wide else first_inputs(starts, k)),
        ("indptr", matrix.indptr),
        ("bounds", bounds),
    )


def first_inputs(starts: npt.NDArray[Any], k: int) -> Array:
    """First inputs of blocks as uint16 where k allows, else int32: they are read with each block.

    Of a 4x4 block in bfloat16 an int32 would be an eighth more to read.
    """
    return starts.astype(np.uint16 if k <= 1 << 16 else np.int32)


def stacked(matrix: BlockSparseMatrix, chunks: int) -> BlockSparseMatrix:
    """Chunks of block columns below each other.

    Returns:
        The same blocks in columns as before; those of block row r and chunk c are in block row
        c * block rows + r.
    """
    if chunks == 1:
        return matrix
    width = -(-matrix.block_cols // chunks)
    rows = matrix.indices // width * matrix.block_rows + matrix.row_ids
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=chunks * matrix.block_rows)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    shape = (chunks * matrix.block_rows * matrix.block[0], matrix.shape[1])
    return BlockSparseMatrix(matrix.values[order], matrix.indices[order], indptr, shape)


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

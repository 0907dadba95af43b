"""What the array is told, and how long that takes: command streams and their cycles.

A stream computes one layer for up to DEPTH rows of x:

    SHAPE                    words from row to row in x and y
    for each block row:      in order, because the sums of one block row fill the accumulators
        for each live block:     LOAD its weights, MATMUL all rows of x with them
        if there is none:        CLEAR, which writes rows of zeros

It depends on the pattern alone, so it is made at build time; rows and addresses of x, y and the
weights are given with each run. driver/systolic.h says what the words mean to the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bscompile.formats import BlockSparseMatrix

LOAD, MATMUL, CLEAR, SHAPE = range(4)
FIRST, LAST = 1 << 8, 1 << 9  # block of its block row
_ENDING = 1  # cycles from the last sum leaving the accumulators to idle

Stream = npt.NDArray[np.int32]


def command_stream(matrix: BlockSparseMatrix) -> Stream:
    """The commands of a layer, int32 [count, 3]: code, from, to.

    Args:
        matrix: W in blocks as large as the array; the blocks lie in memory in its order.
    """
    return np.array(list(_commands(matrix)), np.int32).reshape(-1, 3)


def _commands(matrix: BlockSparseMatrix) -> Iterator[tuple[int, int, int]]:
    size = matrix.block[0]
    yield SHAPE, matrix.block_cols, matrix.block_rows
    for row, (first, end) in enumerate(zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)):
        if first == end:
            yield CLEAR, 0, row
        for block in range(first, end):
            flags = (FIRST if block == first else 0) | (LAST if block == end - 1 else 0)
            yield LOAD, block * size, 0
            yield MATMUL | flags, int(matrix.indices[block]), row


def stream_cycles(stream: Stream, rows: int, size: int) -> int:
    """Cycles of a stream on ``rows`` rows of x: exactly those that the device counts.

    Commands leave the queue one a cycle and in order; a LOAD keeps its port for ``size`` cycles
    and waits until the block before it is in use, MATMUL and CLEAR keep theirs for ``rows``.
    """
    now, weights_free, x_free = -1, 0, 0
    for code in stream[:, 0] & 3:
        now += 1
        if code == LOAD:
            now = max(now, weights_free)
            weights_free = now + size
        elif code != SHAPE:
            now = max(now, x_free)
            x_free = now + rows
    return x_free + 2 * size + _ENDING


def layer_cycles(blocks: int, rows: int, size: int, depth: int) -> int:
    """Cycles of a layer of which only the number of blocks is known: a closed form.

    Each block takes as long as its rows of x or its rows of weights, whichever are more; a run
    begins with SHAPE and the first LOAD and ends when the last sums have left. Exact where no
    block row is empty; an empty one counts as a block, which is exact where rows >= size.

    Args:
        blocks: Live blocks, empty block rows included; at least 1.
        rows: Rows of x; more than ``depth`` are several runs.
        size: Of the array.
        depth: Rows of one run.
    """
    runs = [depth] * (rows // depth) + ([rows % depth] if rows % depth else [])
    return sum((blocks - 1) * max(run, size) + run + 2 * size + 2 + _ENDING for run in runs)


def bound_cycles(blocks: int, rows: int) -> int:
    """Cycles in which every element of the array multiplies: nothing can be faster."""
    return blocks * rows

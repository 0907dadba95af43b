"""Into how many chunks of columns a kernel cuts weights that come from memory.

With one row of x and small blocks every other line that a kernel reads is one of x. A stream of
weights that passes beside drives x out of the nearest cache, and where x then misses it at every
block, the second cache loses track of the stream: 23 GB/s of 31 on a Zen 4. So all block rows go
over one chunk of columns before any goes over the next, with their sums kept in between. A chunk's
part of x stays if it fits beside the weights that pass until the same line of it is read again.
"""

from __future__ import annotations

from bscompile.dialect.precision import itemsize
from bscompile.targets.base import HardwareSpec, Problem
from bscompile.targets.kernels.prefetch import comes_from_memory

CHUNK = 25.0  # units of ending a block row in a chunk and beginning the next

_LINE = 64  # bytes
_LARGEST_BLOCK = 4 * _LINE  # bytes; of larger ones x is a small part of what is read
_SHORTEST_ROW = 1 << 11  # bytes of a block row in a chunk, below which its ends cost too much


def column_chunks(
    problem: Problem, hardware: HardwareSpec, rows: int, x_bytes: int
) -> tuple[int, ...]:
    """Values of ``chunks`` that make a difference, the usual one first.

    Args:
        problem: The layer.
        hardware: The machine.
        rows: Rows of a tile.
        x_bytes: Of one input as the kernel reads it.
    """
    bh, bw = problem.block
    block_bytes = itemsize(problem.dtype) * bh * bw
    weight_bytes = problem.nnzb * block_bytes
    if problem.form != "block_sparse" or block_bytes > _LARGEST_BLOCK or problem.m != rows:
        return (1,)
    if not comes_from_memory(weight_bytes, problem.m, rows):
        return (1,)
    chunks = 1
    while held_beside(problem, rows, x_bytes, chunks) > 0.75 * hardware.cache_bytes[0]:
        chunks *= 2
    if chunks == 1 or weight_bytes * bh / problem.n / chunks < _SHORTEST_ROW:
        return (1,)
    return chunks, 1


def held_beside(problem: Problem, rows: int, x_bytes: int, chunks: int) -> float:
    """Bytes that the nearest cache has to hold for x to stay in it while weights pass.

    Those are x and the weights between two readings of the same line of it.

    Args:
        problem: A block-sparse layer.
        rows: Rows of a tile.
        x_bytes: Of one input as the kernel reads it.
        chunks: Chunks of columns.
    """
    (bh, bw), nnzb = problem.block, problem.nnzb
    block_rows, columns = -(-problem.n // bh), -(-problem.k // bw)
    row_bytes = nnzb * itemsize(problem.dtype) * bh * bw / block_rows
    touched = 1 - (1 - nnzb / (block_rows * columns)) ** max(1.0, _LINE / (bw * x_bytes))
    return float(rows * x_bytes * problem.k + row_bytes / max(touched, 1e-9)) / chunks

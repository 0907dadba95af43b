"""Block-sparse rows (BSR): the non-zero blocks of a matrix, block row by block row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_NOTHING = np.zeros(0)


@dataclass(frozen=True, eq=False)
class BlockSparseMatrix:
    """A matrix [out, in] stored as its live blocks; all other entries are zero.

    Blocks that reach over the edge of the true shape are padded with zeros.

    Attributes:
        values: float [nnzb, bh, bw], the live blocks in block-row order.
        indices: int32 [nnzb], the block column of each; strictly increasing in a block row.
        indptr: int32 [block rows + 1], where each block row begins in ``values``.
        shape: (out, in), the true shape.
    """

    values: Array
    indices: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int32]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.values.ndim != 3:
            raise ValueError(f"values must be [nnzb, bh, bw], got shape {self.values.shape}")
        bh, bw = self.block
        if bh < 1 or bw < 1:
            raise ValueError(f"block sides must be positive, got {bh}x{bw}")
        if len(self.shape) != 2 or min(self.shape) < 0:
            raise ValueError(f"shape must be (out, in), got {self.shape}")
        rows, cols = self.block_rows, self.block_cols
        if self.indptr.shape != (rows + 1,) or self.indptr.dtype != np.int32:
            raise ValueError(
                f"indptr must be int32 [{rows + 1}] for {self.shape} in {bh}x{bw} blocks, "
                f"got {self.indptr.dtype} {list(self.indptr.shape)}"
            )
        if self.indices.shape != (self.nnzb,) or self.indices.dtype != np.int32:
            raise ValueError(
                f"indices must be int32 [{self.nnzb}], one per block, "
                f"got {self.indices.dtype} {list(self.indices.shape)}"
            )
        steps = np.diff(self.indptr)
        if self.indptr[0] != 0 or self.indptr[-1] != self.nnzb or (steps < 0).any():
            raise ValueError(f"indptr must rise from 0 to {self.nnzb}, got {self.indptr}")
        if self.nnzb and not (self.indices.min() >= 0 and self.indices.max() < cols):
            raise ValueError(f"indices must lie in [0, {cols})")
        rising = np.diff(self.indices.astype(np.int64)) > 0
        starts = np.zeros(max(self.nnzb, 1), dtype=bool)
        starts[self.indptr[:-1][steps > 0]] = True
        if not (rising | starts[1 : self.nnzb]).all():
            raise ValueError("indices must rise strictly within each block row")
        # Kernels read whole blocks, so what lies beyond the edge must not count.
        over_h, over_w = rows * bh - self.shape[0], cols * bw - self.shape[1]
        below = self.values[self.indptr[-2] :, bh - over_h :] if over_h else _NOTHING
        beside = self.values[self.indices == cols - 1, :, bw - over_w :] if over_w else _NOTHING
        if below.any() or beside.any():
            raise ValueError(f"values beyond the edge of {self.shape} must be zero")

    @property
    def block(self) -> tuple[int, int]:
        """(bh, bw): the block's side along out and along in."""
        return int(self.values.shape[1]), int(self.values.shape[2])

    @property
    def nnzb(self) -> int:
        """Number of stored blocks."""
        return int(self.values.shape[0])

    @property
    def block_rows(self) -> int:
        """Blocks along the out dimension, the padded one included."""
        return -(-self.shape[0] // self.block[0])

    @property
    def block_cols(self) -> int:
        """Blocks along the in dimension, the padded one included."""
        return -(-self.shape[1] // self.block[1])

    @property
    def density(self) -> float:
        """Stored blocks over all blocks, 0 for an empty matrix."""
        total = self.block_rows * self.block_cols
        return self.nnzb / total if total else 0.0

    @property
    def row_ids(self) -> npt.NDArray[np.int32]:
        """int32 [nnzb]: the block row of each stored block."""
        return np.repeat(np.arange(self.block_rows, dtype=np.int32), np.diff(self.indptr))

    @property
    def nbytes(self) -> int:
        """Bytes of values, indices and indptr."""
        return self.values.nbytes + self.indices.nbytes + self.indptr.nbytes

    @classmethod
    def from_dense(cls, weight: Array, block: tuple[int, int]) -> BlockSparseMatrix:
        """Cut a dense [out, in] matrix into blocks and keep those with a non-zero entry.

        Args:
            weight: [out, in], any float or integer dtype.
            block: (bh, bw); sides that do not divide the shape are padded.

        Raises:
            ValueError: ``weight`` is not a matrix or a block side is not positive.
        """
        tiles = to_tiles(weight, block)
        live = tiles.any(axis=(2, 3))
        rows, cols = np.nonzero(live)
        return cls(
            values=np.ascontiguousarray(tiles[rows, cols]),
            indices=cols.astype(np.int32),
            indptr=np.concatenate([[0], np.cumsum(live.sum(axis=1))]).astype(np.int32),
            shape=(int(weight.shape[0]), int(weight.shape[1])),
        )

    def to_dense(self) -> Array:
        """The full [out, in] matrix, same dtype as ``values``."""
        bh, bw = self.block
        tiles = np.zeros((self.block_rows, self.block_cols, bh, bw), dtype=self.values.dtype)
        tiles[self.row_ids, self.indices] = self.values
        dense = tiles.transpose(0, 2, 1, 3).reshape(self.block_rows * bh, self.block_cols * bw)
        return np.ascontiguousarray(dense[: self.shape[0], : self.shape[1]])

    def mask(self) -> npt.NDArray[np.bool_]:
        """Bool [block rows, block cols]: which blocks are stored."""
        mask = np.zeros((self.block_rows, self.block_cols), dtype=bool)
        mask[self.row_ids, self.indices] = True
        return mask

    def transpose(self) -> BlockSparseMatrix:
        """The [in, out] matrix, with blocks bw x bh."""
        order = np.lexsort((self.row_ids, self.indices))
        counts = np.bincount(self.indices, minlength=self.block_cols)
        return BlockSparseMatrix(
            values=np.ascontiguousarray(self.values[order].transpose(0, 2, 1)),
            indices=self.row_ids[order],
            indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            shape=(self.shape[1], self.shape[0]),
        )

    def reblock(self, block: tuple[int, int]) -> BlockSparseMatrix:
        """The same matrix in blocks of another size: split, merged with fill-in, or both.

        Works on the live blocks alone, by way of blocks that divide both sizes. Where those
        would be slivers, or most blocks are live, going by way of the dense matrix is faster.

        Args:
            block: (bh, bw), the sides wanted; they need not divide today's or the shape.

        Raises:
            ValueError: a side is not positive.
        """
        if block == self.block:
            return self
        if min(block) < 1:
            raise ValueError(f"block sides must be positive, got {block[0]}x{block[1]}")
        common = math.gcd(self.block[0], block[0]), math.gcd(self.block[1], block[1])
        slivers = common not in (self.block, block) and common[0] * common[1] < 4
        crowded = common != self.block and self.density > 0.4
        if slivers or crowded:
            return type(self).from_dense(self.to_dense(), block)
        return self._split(common)._merge(block)

    def _split(self, block: tuple[int, int]) -> BlockSparseMatrix:
        """The same matrix in blocks whose sides divide today's; zero ones are dropped."""
        if block == self.block:
            return self
        (bh, bw), (h, w) = self.block, block
        fh, fw = bh // h, bw // w
        parts = self.values.reshape(self.nnzb, fh, h, fw, w).transpose(0, 1, 3, 2, 4)
        rows = self.row_ids[:, None, None] * fh + np.arange(fh)[:, None]
        cols = self.indices[:, None, None] * fw + np.arange(fw)
        rows, cols = np.broadcast_arrays(rows, cols)
        live = parts.any(axis=(3, 4))
        return _from_blocks(parts[live], rows[live], cols[live], self.shape)

    def _merge(self, block: tuple[int, int]) -> BlockSparseMatrix:
        """The same matrix in blocks whose sides are multiples of today's."""
        if block == self.block:
            return self
        (h, w), (bh, bw) = self.block, block
        fh, fw = bh // h, bw // w
        row_ids = self.row_ids
        cols = -(-self.shape[1] // bw)
        where = (row_ids // fh).astype(np.int64) * cols + self.indices // fw
        merged, owner = np.unique(where, return_inverse=True)
        grid = np.zeros((len(merged), fh, h, fw, w), dtype=self.values.dtype)
        grid[owner, row_ids % fh, :, self.indices % fw, :] = self.values
        values = grid.reshape(len(merged), bh, bw)
        return _from_blocks(values, merged // max(cols, 1), merged % max(cols, 1), self.shape)

    def take_block_rows(self, rows: npt.NDArray[np.int64]) -> BlockSparseMatrix:
        """Some block rows, none of which reaches over the edge, in the order given."""
        counts = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        taken = np.repeat(self.indptr[rows] - indptr[:-1], counts) + np.arange(indptr[-1])
        return BlockSparseMatrix(
            values=self.values[taken],
            indices=self.indices[taken],
            indptr=indptr.astype(np.int32),
            shape=(len(rows) * self.block[0], self.shape[1]),
        )

    def astype(self, dtype: npt.DTypeLike) -> BlockSparseMatrix:
        """The same pattern with values of another dtype."""
        return BlockSparseMatrix(
            self.values.astype(dtype, copy=False), self.indices, self.indptr, self.shape
        )


def _from_blocks(
    values: Array, rows: Array, cols: Array, shape: tuple[int, int]
) -> BlockSparseMatrix:
    """Blocks at (rows, cols), in any order -> a matrix."""
    order = np.lexsort((cols, rows))
    counts = np.bincount(rows, minlength=-(-shape[0] // values.shape[1]))
    return BlockSparseMatrix(
        values=np.ascontiguousarray(values[order]),
        indices=cols[order].astype(np.int32),
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        shape=shape,
    )


def to_tiles(weight: Array, block: tuple[int, int]) -> Array:
    """[out, in] -> [block rows, block cols, bh, bw], padded with zeros at the far edges.

    Raises:
        ValueError: ``weight`` is not a matrix or a block side is not positive.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight must be a matrix [out, in], got shape {weight.shape}")
    bh, bw = block
    if bh < 1 or bw < 1:
        raise ValueError(f"block sides must be positive, got {bh}x{bw}")
    rows, cols = -(-weight.shape[0] // bh), -(-weight.shape[1] // bw)
    if weight.shape != (rows * bh, cols * bw):
        pad = ((0, rows * bh - weight.shape[0]), (0, cols * bw - weight.shape[1]))
        weight = np.pad(weight, pad)
    return weight.reshape(rows, bh, cols, bw).transpose(0, 2, 1, 3)

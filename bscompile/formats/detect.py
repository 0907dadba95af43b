"""Find the zero blocks of a weight from its values alone.

Let mask be W != 0. A block side bh is *possible* when nearly every change of the mask from one
row to the next lies at a multiple of bh; the same for columns. So one pass over W per direction
names all possible sides at once, odd ones such as 12 or 7 included. The largest possible block
that passes two checks wins:

- explained: the zeros inside dead blocks are nearly all zeros of W;
- filled: the live blocks hold nearly no zeros.

Both allow a few accidental zeros inside live blocks. Weights without exact zero blocks are
declined with the reason: dense, unstructured, N:M, or blocks that are small but not zero.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.formats.block_sparse import to_tiles

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

LARGEST_SIDE = 64
WORTHWHILE_ZEROS = 0.05  # below, no kernel gains from skipping
NEAR_ZERO = 1e-3  # of the largest weight: what group penalties leave behind

_ALIGNED = 0.65  # share of changes on multiples, for a side to be possible
_EXPLAINED = 0.97
_FILLED = 0.97
_RARE = 0.02  # changes per entry that accidental zeros alone may make
_CANDIDATES = 8  # per direction, largest first


@dataclass(frozen=True)
class BlockPattern:
    """What was found in a weight.

    Attributes:
        kind: ``block``, ``dense``, ``unstructured``, ``n:m`` or ``near_zero``.
        block: (bh, bw) of the zero blocks; (1, 1) unless ``kind`` is ``block``.
        density: Share of the blocks (of that size) that are live.
        zeros: Share of the entries that are exactly zero.
        reason: One sentence for the user.
    """

    kind: str
    block: tuple[int, int]
    density: float
    zeros: float
    reason: str

    @property
    def is_block_sparse(self) -> bool:
        """Whether skipping zero blocks loses nothing."""
        return self.kind == "block"

    def to_json(self) -> str:
        """The text kept in a node's metadata."""
        return json.dumps(
            {
                "kind": self.kind,
                "block": list(self.block),
                "density": round(self.density, 6),
                "zeros": round(self.zeros, 6),
                "reason": self.reason,
            }
        )


def detect_blocks(weight: Array) -> BlockPattern:
    """Find the largest blocks that explain the zeros of a weight.

    Args:
        weight: W [out, in], any float dtype.

    Raises:
        ValueError: ``weight`` is not a matrix.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight must be a matrix [out, in], got shape {weight.shape}")
    if not weight.size:
        return BlockPattern("dense", (1, 1), 1.0, 0.0, "the weight is empty")
    mask = weight != 0
    zeros = 1 - int(np.count_nonzero(mask)) / weight.size
    if zeros < WORTHWHILE_ZEROS:
        return _without_zeros(weight, zeros)
    found = _best_block(mask, zeros)
    if found is not None:
        block, density = found
        reason = f"{1 - density:.0%} of the {block[0]}x{block[1]} blocks are zero"
        return BlockPattern("block", block, density, zeros, reason)
    group = _n_of_m(mask, zeros)
    if group is not None:
        n, m, axis = group
        reason = (
            f"{n}:{m} sparse along {axis}: its zeros fill no whole blocks; "
            "train with block sparsity to gain"
        )
        return BlockPattern("n:m", (1, 1), 1 - zeros, zeros, reason)
    reason = f"{zeros:.0%} zeros, but scattered: no block shape explains them"
    return BlockPattern("unstructured", (1, 1), 1 - zeros, zeros, reason)


def _without_zeros(weight: Array, zeros: float) -> BlockPattern:
    """Dense, or blocks that a group penalty made small without making them zero."""
    size = np.abs(weight)
    mask = size > NEAR_ZERO * size.max()
    small = 1 - int(np.count_nonzero(mask)) / weight.size
    found = _best_block(mask, small) if small >= WORTHWHILE_ZEROS else None
    if found is None:
        return BlockPattern("dense", (1, 1), 1.0, zeros, f"{zeros:.1%} zeros: dense")
    (bh, bw), density = found
    reason = (
        f"{1 - density:.0%} of the {bh}x{bw} blocks are tiny but not zero; "
        "set them to zero and fine-tune before exporting"
    )
    return BlockPattern("near_zero", (1, 1), 1.0, zeros, reason)


def _best_block(mask: Mask, zeros: float) -> tuple[tuple[int, int], float] | None:
    """(block, live share of blocks) of the largest block that passes both checks."""
    down = np.count_nonzero(mask[1:] != mask[:-1], axis=1)
    across = np.count_nonzero(mask[:, 1:] != mask[:, :-1], axis=0)
    heights = _possible_sides(down, mask.shape[0], mask.size)
    widths = _possible_sides(across, mask.shape[1], mask.size)
    blocks = sorted(
        ((h, w) for h in heights for w in widths if h * w > 1),
        key=lambda block: (-block[0] * block[1], abs(block[0] - block[1])),
    )
    for block in blocks:
        live = to_tiles(mask, block).any(axis=(2, 3))  # [block rows, block cols]
        area = _true_areas(mask.shape, block)
        live_entries = int(area[live].sum())
        explained = (mask.size - live_entries) / (zeros * mask.size)
        filled = np.count_nonzero(mask) / live_entries if live_entries else 1.0
        if explained >= _EXPLAINED and filled >= _FILLED:
            return block, float(live.mean())
    return None


def _possible_sides(changes: npt.NDArray[np.int64], length: int, entries: int) -> list[int]:
    """Sides whose multiples carry most changes; ``changes[i]`` is between i and i + 1.

    Accidental zeros inside live blocks change the mask everywhere alike, so the median change is
    taken off first. Where next to nothing changes (whole rows or columns) any side would do.
    """
    sides = range(min(LARGEST_SIDE, length), 0, -1)
    usual = next(side for side in sides if side & (side - 1) == 0)
    if not changes.any():
        return [usual]
    excess = np.maximum(changes - np.median(changes), 0)
    excess = excess if excess.any() else changes
    wanted = _ALIGNED * excess.sum()
    possible = [s for s in sides if excess[s - 1 :: s].sum() >= wanted][:_CANDIDATES]
    return possible if changes.sum() > _RARE * entries else [usual, *possible]


def _true_areas(shape: tuple[int, ...], block: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Entries of each block that lie inside the matrix: int [block rows, block cols]."""
    sides = [
        np.minimum(b, n - b * np.arange(-(-n // b))) for n, b in zip(shape, block, strict=True)
    ]
    return np.outer(*sides)


def _n_of_m(mask: Mask, zeros: float) -> tuple[int, int, str] | None:
    """(n, m, axis) when every group of m neighbours has at most n live entries, tightly."""
    for axis, view in (("in", mask), ("out", mask.T)):
        for m in (4, 8, 16, 2):
            if view.shape[1] % m:
                continue
            counts = np.add.reduce(view.reshape(view.shape[0], -1, m), axis=2, dtype=np.int64)
            n = int(counts.max())
            if n < m and abs((1 - zeros) - n / m) < 0.02:
                return n, m, axis
    return None

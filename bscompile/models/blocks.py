"""Block arithmetic on torch tensors: cutting a weight into blocks, and merging factors.

A weight is [out, in] as in nn.Linear; a block is (bh, bw) along (out, in); W has m1 x n1
blocks. The rearrangement R [m1 n1, bh bw] holds one block per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bscompile.errors import UsageError

Block = tuple[int, int]


def parse_block(text: str) -> Block:
    """Read a block size: ``"8x4"`` is 8 along out and 4 along in, ``"8"`` is 8x8.

    Raises:
        UsageError: The text is not one or two positive integers.
    """
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise UsageError(f"block: wanted OUTxIN such as 8x8, got {text!r}")
    return int(sides[0]), int(sides[-1])


def as_block(block: int | Block) -> Block:
    """``8`` -> ``(8, 8)``; pairs pass through.

    Raises:
        UsageError: A side is not positive.
    """
    bh, bw = (block, block) if isinstance(block, int) else block
    if bh < 1 or bw < 1:
        raise UsageError(f"block sides must be positive, got {bh}x{bw}")
    return bh, bw


def largest_divisor(size: int, limit: int) -> int:
    """The largest divisor of ``size`` that is at most ``limit``."""
    return next(side for side in range(min(size, limit), 0, -1) if size % side == 0)


def to_blocks(weight: Tensor, block: Block) -> Tensor:
    """[out, in] -> [m1, n1, bh, bw], a view where the layout allows it."""
    (out, inner), (bh, bw) = weight.shape, block
    return weight.reshape(out // bh, bh, inner // bw, bw).permute(0, 2, 1, 3)


def from_blocks(blocks: Tensor) -> Tensor:
    """[m1, n1, bh, bw] -> [out, in]."""
    m1, n1, bh, bw = blocks.shape
    return blocks.permute(0, 2, 1, 3).reshape(m1 * bh, n1 * bw)


def merge_factors(coefficients: Tensor, patterns: Tensor) -> Tensor:
    """The weight Σᵢ Cᵢ ⊗ Bᵢ.

    Args:
        coefficients: C = S∘A, float [r, m1, n1].
        patterns: B, float [r, bh, bw].

    Returns:
        W, float [m1 bh, n1 bw]; a block with all-zero coefficients is exactly zero.
    """
    rank, m1, n1 = coefficients.shape
    _, bh, bw = patterns.shape
    rows = coefficients.reshape(rank, m1 * n1).T @ patterns.reshape(rank, bh * bw)
    return from_blocks(rows.view(m1, n1, bh, bw))


def block_norms(weight: Tensor, block: Block) -> Tensor:
    """Frobenius norm of each block: [out, in] -> [m1, n1]."""
    norms: Tensor = torch.linalg.vector_norm(to_blocks(weight, block), dim=(2, 3))
    return norms


def merged_block_norms(coefficients: Tensor, patterns: Tensor) -> Tensor:
    """Norms [m1, n1] of the blocks of Σᵢ Cᵢ ⊗ Bᵢ, without building W.

    ‖Σᵢ cᵢ Bᵢ‖² = cᵀ G c with the Gram matrix G[i, j] = ⟨Bᵢ, Bⱼ⟩.
    """
    flat = patterns.flatten(1)
    squared = torch.einsum("ipq,ij,jpq->pq", coefficients, flat @ flat.T, coefficients)
    norms: Tensor = squared.clamp_min(0).sqrt()
    return norms


def live_blocks(weight: Tensor, block: Block) -> Tensor:
    """Bool [m1, n1]: blocks of ``weight`` with an entry that is not exactly zero."""
    return to_blocks(weight, block).ne(0).any(dim=3).any(dim=2)

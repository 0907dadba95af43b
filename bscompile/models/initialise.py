"""Starting values of the factors S, A, B.

Random: with S = 1 and var(Aᵢ) = var(Bᵢ) = sqrt(gain / (n r)), an entry of W = Σᵢ Aᵢ Bᵢ has
variance r var(A) var(B) = gain / n, as in He initialisation for gain 2.
Nearest: the best rank-r approximation of the rearrangement R = Σ aᵢ bᵢᵀ is its truncated SVD.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bscompile.models.blocks import Block, to_blocks


def variance_preserving_(A: Tensor, B: Tensor, fan_in: int, gain: float = 2.0) -> None:
    """Fill A [r, m1, n1] and B [r, bh, bw] in place so that var(W) = gain / fan_in."""
    deviation = (gain / (fan_in * A.shape[0])) ** 0.25
    nn.init.normal_(A, std=deviation)
    nn.init.normal_(B, std=deviation)


def nearest_kronecker_sum(weight: Tensor, block: Block, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of rank r that come nearest to W in the Frobenius norm.

    Args:
        weight: Float [out, in]; zero blocks stay exactly zero.
        block: (bh, bw), dividing the shape.
        rank: Number of terms; from the rank of the rearrangement on, the result is exact.

    Returns:
        S [m1, n1] (1 for live blocks, else 0), A [r, m1, n1], B [r, bh, bw], with the
        singular values shared evenly between A and B, in the dtype of ``weight``.
    """
    tiles = to_blocks(weight, block)
    m1, n1, bh, bw = tiles.shape
    rows = tiles.reshape(m1 * n1, bh * bw).double()
    support = rows.ne(0).any(dim=1)
    # The right singular vectors from the small Gram matrix would lose half the digits; the
    # live rows alone are enough, since a zero row adds nothing.
    left, values, right = torch.linalg.svd(rows[support], full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    A = rows.new_zeros(rank, m1 * n1)
    B = rows.new_zeros(rank, bh * bw)
    A[:kept, support] = (left[:, :kept] * root).T
    B[:kept] = root[:, None] * right[:kept]
    S = support.view(m1, n1)
    return (
        S.to(weight.dtype),
        A.view(rank, m1, n1).to(weight.dtype),
        B.view(rank, bh, bw).to(weight.dtype),
    )

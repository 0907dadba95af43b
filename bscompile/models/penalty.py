"""l1 on S by a proximal step, with the strength steered towards a sparsity.

The gradient of |S| under Adam only makes entries small; the proximal step
S <- sign(S) max(|S| - lr strength, 0) makes them exactly zero. The sparsity that a given
strength yields jumps from a fifth to everything within a factor of three, so the user names
the sparsity, and the strength is steered. Each block's threshold is weighted by the mean norm
over its own: a plain l1 shrinks the blocks that stay as much as those that go, which cost 2 to
5 points of accuracy on digits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bscompile.models.layers import block_sparse_layers

# Without a limit the strength would run away where the loss holds every block.
STRONGEST = 20.0


@torch.no_grad()
def soft_threshold_(S: Tensor, threshold: float | Tensor) -> None:
    """The proximal step of ``Σ threshold |S|``, in place."""
    S.copy_(S.sign() * (S.abs() - threshold).clamp_min_(0))


def relative_weights(norms: Tensor) -> Tensor:
    """Weights [m1, n1] of a reweighted l1: mean norm over norm, at most 10."""
    return (norms.mean() / norms.clamp_min(1e-12)).clamp_max(10.0)


@torch.no_grad()
def balance_(model: nn.Module) -> None:
    """Move the scale of each A and B term to an even split, leaving every W as it is.

    (A c) ⊗ (B / c) = A ⊗ B, so without this the penalty on S could be escaped by growing A.
    S is scaled to have a root mean square of 1 over its non-zero entries.
    """
    for _, layer in block_sparse_layers(model):
        live = layer.S[layer.S != 0]
        if not len(live):
            continue
        size = live.square().mean().sqrt()
        layer.S.div_(size)
        a, b = layer.A.flatten(1).norm(dim=1), layer.B.flatten(1).norm(dim=1)
        both = (a * b * size).sqrt()
        layer.A.mul_((both / a.clamp_min(1e-12))[:, None, None])
        layer.B.mul_((both / b.clamp_min(1e-12))[:, None, None])


@torch.no_grad()
def capped_threshold(S: Tensor, threshold: Tensor, sparsity: float) -> Tensor:
    """The thresholds, scaled down if they would zero more than a share of the entries of S.

    Args:
        S: [m1, n1].
        threshold: Positive, [m1, n1].
        sparsity: The largest share of zeros.
    """
    index = round(sparsity * S.numel())
    if index == 0:
        return torch.zeros_like(threshold)
    ratio = (S.abs() / threshold).flatten().kthvalue(index).values
    return threshold * ratio.clamp_max(1.0)


class StrengthControl:
    """Steers the strength of the proximal step so that the sparsity follows a target.

    The logarithm of the strength rises by ``gain`` times the shortfall, so neither the scale of
    the loss nor of S need be known. Call it once a step. Within ``tolerance`` of the target the
    strength falls: kept up without need, it only shrinks what stays.

    Args:
        strength: Where to begin; at 1 a step of Adam and the threshold are equally large.
        gain: How hard to steer; per call and per unit of sparsity.
        tolerance: Shortfall that counts as none.
    """

    def __init__(self, strength: float = 0.5, gain: float = 0.1, tolerance: float = 0.02) -> None:
        self.strength, self.gain, self.tolerance = strength, gain, tolerance

    def update(self, target: float, reached: float) -> None:
        """Raise the strength when ``reached`` falls short of ``target``, else lower it."""
        shortfall = target - reached
        if shortfall > self.tolerance:
            self.strength = min(self.strength * math.exp(self.gain * shortfall), STRONGEST)
        else:
            self.strength *= 0.99

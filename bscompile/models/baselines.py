"""The paper's comparison methods, on dense weights, with the interface of the others.

Dense is ``SparsityMethod()``; iterative block magnitude pruning is ``GradualPruning`` with a
block. Here are those with rules of their own; every one ends with an exact cut by block norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bscompile.models.blocks import Block, to_blocks
from bscompile.models.methods import GradualPruning, SparsityMethod
from bscompile.models.prunable import DenseBlocks, largest


class GroupLasso(SparsityMethod):
    """The group lasso Σ ‖block‖ by its proximal step.

    Args:
        sparsity: Share of blocks, in every layer, that are exactly zero at the end.
        block: (bh, bw) or the side of square blocks.
        exclude: Name patterns of layers to leave alone.
        strength: Of the penalty.
    """

    elastic = 0.0  # of an l1 on single entries, relative to the norm's strength per entry

    def __init__(
        self,
        sparsity: float,
        block: int | Block,
        exclude: Sequence[str] = (),
        strength: float = 0.2,
    ) -> None:
        super().__init__(sparsity, block, exclude)
        self.strength = strength

    def on_step(self, learning_rate: float, progress: float) -> None:
        """Shrink entries, then whole blocks."""
        threshold = learning_rate * self.strength
        for layer in self.layers:
            if isinstance(layer, DenseBlocks):
                blocks = layer.blocks()
                if self.elastic:
                    per_entry = threshold * self.elastic / math.sqrt(math.prod(layer.block))
                    blocks.copy_(blocks.sign() * (blocks.abs() - per_entry).clamp_min_(0))
                norms = torch.linalg.vector_norm(blocks, dim=(2, 3), keepdim=True)
                blocks.mul_((1 - threshold / norms.clamp_min(1e-12)).clamp_min_(0))


class ElasticGroupLasso(GroupLasso):
    """Group lasso with half as much l1 on the entries."""

    elastic = 0.5


class BlockRigL(SparsityMethod):
    """Sparse from the first step: drop the weakest blocks, grow where the gradient is largest.

    Args:
        sparsity: Share of zero blocks in every layer, throughout.
        block: (bh, bw) or the side of square blocks.
        exclude: Name patterns of layers to leave alone.
        fraction: Share of the live blocks exchanged in an update, falling to 0 on a cosine.
        until: Progress after which nothing is exchanged.
    """

    def __init__(
        self,
        sparsity: float,
        block: int | Block,
        exclude: Sequence[str] = (),
        fraction: float = 0.3,
        until: float = 0.75,
    ) -> None:
        super().__init__(sparsity, block, exclude)
        self.fraction, self.until = fraction, until

    def attach(self, model: nn.Module) -> None:
        """Begin with a random pattern; seeded by torch's default generator."""
        super().attach(model)
        for layer in self.layers:
            layer.keep(largest(torch.rand(layer.mask.shape), self.schedule.target))

    def on_epoch(self, progress: float) -> None:
        """Exchange blocks by the gradient of the last batch."""
        if progress >= self.until:
            return
        share = self.fraction * 0.5 * (1 + math.cos(math.pi * progress / self.until))
        for layer in self.layers:
            if isinstance(layer, DenseBlocks) and layer.weight.grad is not None:
                layer.keep(self._exchange(layer, layer.weight.grad, share))

    def _exchange(self, layer: DenseBlocks, gradient: Tensor, share: float) -> Tensor:
        """The next mask: as many live blocks as before."""
        mask = layer.mask.flatten()
        count = min(round(share * int(mask.sum())), int((~mask).sum()))
        slopes = torch.linalg.vector_norm(to_blocks(gradient, layer.block), dim=(2, 3)).flatten()
        norms = layer.norms().flatten()
        weakest = norms.masked_fill(~mask, math.inf).argsort()[:count]
        steepest = slopes.masked_fill(mask, -math.inf).argsort(descending=True)[:count]
        new = mask.clone()
        new[weakest] = False
        new[steepest] = True
        return new.view_as(layer.mask)

    def finish(self) -> None:
        """Fix the pattern that was reached."""
        self.finished = True


class BlockPruning(GradualPruning):
    """Iterative block magnitude pruning: the cubic schedule on the norms of dense blocks."""

    def __init__(
        self, sparsity: float, block: int | Block = 8, exclude: Sequence[str] = ()
    ) -> None:
        super().__init__(sparsity, block, exclude)

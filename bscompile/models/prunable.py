"""One view of everything that can lose blocks: factorized layers and dense weights alike.

The sparsity methods see layers only through this view, so that a baseline on dense weights and
the factorized method differ in nothing but the weight.
"""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bscompile.errors import UsageError
from bscompile.models.blocks import Block, as_block, block_norms, live_blocks, to_blocks
from bscompile.models.layers import KroneckerWeight, block_sparse_layers


class Prunable(ABC):
    """A weight of m1 x n1 blocks with a mask over them."""

    name: str
    mask: Tensor

    @abstractmethod
    def norms(self) -> Tensor:
        """Frobenius norms [m1, n1] of the blocks of W."""

    @abstractmethod
    def support(self) -> Tensor:
        """Bool [m1, n1]: blocks of W that are not exactly zero."""

    @abstractmethod
    def enforce(self) -> None:
        """Make the masked blocks exactly zero."""

    def keep(self, mask: Tensor) -> None:
        """Set the mask (bool [m1, n1]) and enforce it."""
        self.mask.copy_(mask)
        self.enforce()

    def keep_largest(self, sparsity: float) -> None:
        """Keep the blocks of largest norm; exactly ``round(sparsity * blocks)`` go."""
        self.keep(largest(self.norms(), sparsity))


class FactorizedBlocks(Prunable):
    """The blocks of a factorized layer; its mask is part of its forward pass."""

    def __init__(self, name: str, layer: KroneckerWeight) -> None:
        self.name, self.layer, self.mask = name, layer, layer.mask

    def norms(self) -> Tensor:
        """Norms of the merged blocks."""
        return self.layer.block_norms()

    def support(self) -> Tensor:
        """Blocks with a non-zero coefficient."""
        return self.layer.support()

    @torch.no_grad()
    def enforce(self) -> None:
        """Zero S too, so that the parameters alone tell the sparsity."""
        self.layer.S.mul_(self.mask)


class DenseBlocks(Prunable):
    """The blocks of a dense weight [out, in]; masked after each optimizer step."""

    def __init__(self, name: str, weight: Tensor, block: Block) -> None:
        self.name, self.weight, self.block = name, weight, block
        out, inner = weight.shape
        size = out // block[0], inner // block[1]
        self.mask = torch.ones(size, dtype=torch.bool, device=weight.device)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Norms of the blocks."""
        return block_norms(self.weight, self.block)

    def support(self) -> Tensor:
        """Blocks with a non-zero entry."""
        return live_blocks(self.weight.detach(), self.block)

    def blocks(self) -> Tensor:
        """The weight as a view [m1, n1, bh, bw], detached."""
        return to_blocks(self.weight.detach(), self.block)

    def enforce(self) -> None:
        """Zero the masked blocks of the weight."""
        self.blocks().mul_(self.mask[:, :, None, None])


def prunable(
    model: nn.Module, block: int | Block | None = None, exclude: Sequence[str] = ()
) -> list[Prunable]:
    """The factorized layers of a model, and its linear layers if a block is given.

    Args:
        model: Any module.
        block: Blocks of dense layers; those that it does not divide are left out.
        exclude: Name patterns of layers to leave alone.
    """
    found: list[Prunable] = [FactorizedBlocks(*pair) for pair in block_sparse_layers(model)]
    if block is not None:
        bh, bw = as_block(block)
        for name, module in model.named_modules():
            divides = isinstance(module, nn.Linear) and not (
                module.out_features % bh or module.in_features % bw
            )
            if divides and not any(fnmatch.fnmatchcase(name, p) for p in exclude):
                assert isinstance(module, nn.Linear)
                found.append(DenseBlocks(name, module.weight, (bh, bw)))
    return found


def largest(norms: Tensor, sparsity: float) -> Tensor:
    """Bool mask of the blocks that stay when ``round(sparsity * blocks)`` smallest go.

    Raises:
        UsageError: ``sparsity`` is not in [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity must lie in [0, 1), got {sparsity:g}")
    order = norms.flatten().argsort(stable=True)
    mask = torch.ones_like(order, dtype=torch.bool)
    mask[order[: round(sparsity * len(order))]] = False
    return mask.view_as(norms)


def sparsity_of(layers: Sequence[Prunable]) -> float:
    """Share of exactly zero blocks over all layers; 0 if there are none."""
    supports = [layer.support() for layer in layers]
    total = sum(support.numel() for support in supports)
    return 1.0 - sum(int(support.sum()) for support in supports) / total if total else 0.0

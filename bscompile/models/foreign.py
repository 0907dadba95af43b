"""Models made sparse by other tools: to plain dense weights with exact zero blocks.

What the compiler reads is a constant with zero blocks, whoever made it. Other tools keep masks,
parametrizations or sparse tensors beside the weight, which no exporter takes, or leave blocks
that are small but not zero. These functions end each of these.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from bscompile.models.blocks import Block, as_block
from bscompile.models.prunable import prunable

logger = logging.getLogger(__name__)


def plain_weights(model: nn.Module) -> nn.Module:
    """Make every weight an ordinary dense parameter with the value it has now, in place.

    Takes parametrizations (torch.ao.pruning's sparsifiers, weight norm), the masks of
    torch.nn.utils.prune, and sparse parameters (BSR and the other layouts).

    Args:
        model: Any module.

    Returns:
        The model.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            held = module.parametrizations
            assert isinstance(held, nn.ModuleDict)
            for name in list(held):
                parametrize.remove_parametrizations(module, name)
        if prune.is_pruned(module):
            masked = [n.removesuffix("_orig") for n, _ in module.named_parameters(recurse=False)]
            for name in masked:
                if hasattr(module, f"{name}_mask"):
                    prune.remove(module, name)  # type: ignore[no-untyped-call]
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.layout != torch.strided:
                dense = parameter.detach().to_dense()
                module.register_parameter(name, nn.Parameter(dense, parameter.requires_grad))
    return model


@dataclass(frozen=True)
class Snapped:
    """What snapping did to one layer.

    Attributes:
        name: The layer.
        zeroed: Blocks made zero.
        blocks: All its blocks.
        change: Norm of what was removed over the norm of W.
    """

    name: str
    zeroed: int
    blocks: int
    change: float


@torch.no_grad()
def snap_blocks(
    model: nn.Module, block: int | Block, tolerance: float = 1e-3, exclude: Sequence[str] = ()
) -> list[Snapped]:
    """Make blocks exactly zero that training left nearly so, in place.

    A penalty without a proximal step ends near zero, never at it. Measure the accuracy before
    and after: the removed share of each weight is returned and logged, never hidden.

    Args:
        model: With dense linear layers.
        block: (bh, bw) or the side of square blocks.
        tolerance: Blocks go whose norm is below this share of the layer's largest.
        exclude: Name patterns of layers to leave alone.

    Returns:
        One entry a layer that the block divides.
    """
    done = []
    for layer in prunable(model, as_block(block), exclude):
        norms = layer.norms()
        kept = norms > tolerance * norms.max()
        removed = norms.masked_fill(kept, 0.0).norm() / norms.norm().clamp_min(1e-30)
        was_zero = ~layer.support()
        layer.keep(kept)
        count = int((~kept & ~was_zero).sum())
        done.append(Snapped(layer.name, count, kept.numel(), float(removed)))
        text = "%s: %d of %d blocks made zero, %.2g of the weight's norm"
        logger.info(text, layer.name, count, kept.numel(), float(removed))
    return done

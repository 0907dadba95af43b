"""Sparsity methods: what a training loop calls to make blocks zero while it trains.

Every method works on the same view of the layers (``prunable``), so factorized layers and the
dense baselines of the paper share one interface: attach once, step after each optimizer step,
epoch after each epoch, finish once. After ``finish`` the mask is fixed and ``step`` keeps it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bscompile.errors import UsageError
from bscompile.models.blocks import Block
from bscompile.models.penalty import (
    StrengthControl,
    balance_,
    capped_threshold,
    relative_weights,
    soft_threshold_,
)
from bscompile.models.prunable import FactorizedBlocks, Prunable, prunable, sparsity_of
from bscompile.models.schedule import CubicSchedule

logger = logging.getLogger(__name__)


class SparsityMethod:
    """Trains without making zeros, and keeps the zeros that are there; base of the others.

    Args:
        sparsity: Share of blocks, in every layer, that are exactly zero at the end.
        block: Blocks of dense layers; ``None`` to work on factorized layers alone.
        exclude: Name patterns of dense layers to leave alone.
    """

    def __init__(
        self,
        sparsity: float = 0.0,
        block: int | Block | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        self.schedule = CubicSchedule(sparsity)
        self.block, self.exclude = block, exclude
        self.layers: list[Prunable] = []
        self.finished = False

    def attach(self, model: nn.Module) -> None:
        """Find the layers of a model; zeros already there become part of the mask.

        Raises:
            UsageError: Zeros are wanted, and there is no layer to make them in.
        """
        self.model = model
        self.layers = prunable(model, self.block, self.exclude)
        if self.schedule.target and not self.layers:
            kind = "factorized layer" if self.block is None else f"layer in {self.block} blocks"
            raise UsageError(
                f"sparsity {self.schedule.target:g} is wanted, but the model has no {kind}",
                hint="plan() says why each layer stays dense; try a smaller block",
            )

    def penalty(self) -> Tensor | None:
        """A differentiable term to add to the loss, if the method has one."""
        return None

    @torch.no_grad()
    def step(self, learning_rate: float, progress: float) -> None:
        """Call after each optimizer step.

        Args:
            learning_rate: That of the step.
            progress: Steps done over all steps before ``finish``, in (0, 1].
        """
        if not self.finished:
            self.on_step(learning_rate, progress)
        for layer in self.layers:
            layer.enforce()

    @torch.no_grad()
    def epoch(self, progress: float) -> None:
        """Call after each epoch, with the progress in (0, 1]."""
        if not self.finished:
            self.on_epoch(progress)

    @torch.no_grad()
    def finish(self) -> None:
        """Cut to exactly the target sparsity and fix the mask."""
        for layer in self.layers:
            layer.keep_largest(self.schedule.target)
        self.finished = True

    def on_step(self, learning_rate: float, progress: float) -> None:
        """What the method does after a step."""

    def on_epoch(self, progress: float) -> None:
        """What the method does after an epoch."""

    @property
    def sparsity(self) -> float:
        """Share of exactly zero blocks now."""
        return sparsity_of(self.layers)


class GradualPruning(SparsityMethod):
    """Cut the blocks of smallest norm, a few more after each epoch, on a cubic schedule.

    On factorized layers this is the recommended method; with ``block`` set it is the baseline
    of iterative block magnitude pruning of dense layers. A cut block may come back while the
    schedule runs only if its weights do; masked factors get no gradient, so it does not.
    """

    def on_epoch(self, progress: float) -> None:
        """Prune to the schedule."""
        wanted = self.schedule(progress)
        for layer in self.layers:
            layer.keep_largest(wanted)


class ProximalL1(SparsityMethod):
    """The paper's l1 on S, by proximal steps, with the strength steered to the target.

    Only factorized layers are touched. A zero of S may come back while training goes on; no
    more are made than the schedule wants, and what is still missing at the end is cut by norm.

    Args:
        sparsity: Share of blocks, in every layer, that are exactly zero at the end.
        reweighted: Whether blocks of large norm are shrunk less; without it, the plain l1.
    """

    def __init__(self, sparsity: float = 0.0, reweighted: bool = True) -> None:
        super().__init__(sparsity)
        self.reweighted = reweighted

    def attach(self, model: nn.Module) -> None:
        """Find the factorized layers."""
        super().attach(model)
        self.control = StrengthControl()

    def on_step(self, learning_rate: float, progress: float) -> None:
        """Shrink S."""
        wanted = self.schedule(progress)
        if not wanted:
            return
        self.control.update(wanted, self.sparsity)
        for layer in self.layers:
            if isinstance(layer, FactorizedBlocks):
                S = layer.layer.S
                weights = relative_weights(layer.norms()) if self.reweighted else torch.ones_like(S)
                threshold = learning_rate * self.control.strength * weights
                soft_threshold_(S, capped_threshold(S, threshold, wanted))

    def on_epoch(self, progress: float) -> None:
        """Take the scale out of A and B."""
        logger.debug("l1 strength %.3g, sparsity %.3f", self.control.strength, self.sparsity)
        balance_(self.model)

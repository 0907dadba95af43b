"""Which block size? K candidates train side by side until a growing penalty leaves one.

Each layer becomes the sum of K factorized layers, one a candidate. A group penalty on each
candidate's S, raised epoch by epoch, shrinks them all; one whose share of the weight falls under
a threshold is dropped, and the penalty stops when one is left. What a candidate is charged
decides who survives far more than the data do, so the charge is the user's to name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bscompile.errors import UsageError
from bscompile.models.blocks import Block, as_block
from bscompile.models.convert import plan, replace_modules
from bscompile.models.function import cheapest_form, macs_per_row
from bscompile.models.layers import BlockSparseLinear
from bscompile.models.methods import SparsityMethod
from bscompile.models.summary import factor_parameters

Cost = Literal["uniform", "parameters", "flops"]
CostOf = Callable[[tuple[int, int], Block, int], float]  # (out, in), block, rank -> charge

COSTS: dict[str, CostOf] = {
    "uniform": lambda shape, block, rank: 1.0,
    "parameters": factor_parameters,
    "flops": lambda *layer: macs_per_row(*layer)[cheapest_form(*layer)],
}


class CandidateLinear(nn.Module):
    """The sum of one factorized layer for each candidate block, and one bias.

    Attributes:
        candidates: One BlockSparseLinear a block, without bias.
        alive: Bool buffer [K].
    """

    alive: Tensor

    def __init__(self, layer: nn.Linear, blocks: Sequence[Block], rank: int) -> None:
        super().__init__()
        size = layer.in_features, layer.out_features
        self.candidates = nn.ModuleList(
            BlockSparseLinear(*size, block, min(rank, math.prod(block)), bias=False)
            for block in blocks
        )
        with torch.no_grad():
            for candidate in self.candidates:
                assert isinstance(candidate, BlockSparseLinear)
                candidate.reset_factors(gain=2.0 / len(blocks))  # the sum keeps the variance
        self.bias = layer.bias
        self.register_buffer("alive", torch.ones(len(blocks), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        outputs = [c(x) for c, alive in zip(self.candidates, self.alive, strict=True) if alive]
        y: Tensor = torch.stack(outputs).sum(0) if len(outputs) > 1 else outputs[0]
        return y if self.bias is None else y + self.bias

    def of(self, index: int) -> BlockSparseLinear:
        """The candidate's layer."""
        layer = self.candidates[index]
        assert isinstance(layer, BlockSparseLinear)
        return layer


@dataclass(frozen=True)
class Choice:
    """What became of the candidates of one group of layers.

    Attributes:
        layers: The names of the layers.
        survivors: Blocks that were left; one, or the selection is undecided.
        dropped_at: Block -> progress in (0, 1] at which it was dropped.
        shares: Block -> its share of the layers' weight norm at the end.
    """

    layers: tuple[str, ...]
    survivors: tuple[Block, ...]
    dropped_at: Mapping[Block, float]
    shares: Mapping[Block, float]

    @property
    def decided(self) -> bool:
        """Whether exactly one candidate is left."""
        return len(self.survivors) == 1

    def __str__(self) -> str:
        left = ", ".join(f"{bh}x{bw}" for bh, bw in self.survivors)
        where = f"{len(self.layers)} layers" if len(self.layers) > 1 else self.layers[0]
        return f"{where}: {left}" if self.decided else f"{where}: undecided among {left}"


def add_candidates(
    model: nn.Module,
    blocks: Sequence[int | Block],
    rank: int = 2,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> nn.Module:
    """Replace each linear layer that all candidate blocks divide by a ``CandidateLinear``.

    Raises:
        UsageError: Fewer than two blocks, or no layer that all of them divide.
    """
    pairs = [as_block(block) for block in blocks]
    if len(set(pairs)) < 2:
        raise UsageError(f"selection needs two different blocks or more, got {blocks}")
    replaced: dict[int, nn.Module] = {}
    for step in plan(model, 1, 1, include, exclude):
        layer = model.get_submodule(step.name)
        divided = not any(step.shape[0] % bh or step.shape[1] % bw for bh, bw in pairs)
        if divided and isinstance(layer, nn.Linear):
            replaced[id(layer)] = CandidateLinear(layer, pairs, rank)
    if not replaced:
        raise UsageError(f"no linear layer is divided by all of the blocks {blocks}")
    return replace_modules(model, replaced)


class BlockSelection(SparsityMethod):
    """The growing group penalty, as a method of the training loop.

    Args:
        cost: What a candidate is charged: ``"uniform"``, ``"parameters"``, ``"flops"``; a
            function of (out, in), block and rank, such as the latency on a target, added up
            over the layers; or a mapping from block to any cost.
        per_layer: Whether each layer chooses for itself.
        strength: Of the penalty in the first epoch.
        growth: Factor by which it has grown at the end.
        threshold: Share of the weight's norm under which a candidate is dropped.
    """

    def __init__(
        self,
        cost: Cost | CostOf | Mapping[Block, float] = "flops",
        per_layer: bool = False,
        strength: float = 0.05,
        growth: float = 10000.0,
        threshold: float = 0.1,
    ) -> None:
        super().__init__()
        if isinstance(cost, str) and cost not in COSTS:
            raise UsageError(f"cost: wanted one of {', '.join(COSTS)}, got {cost!r}")
        self.cost, self.per_layer = cost, per_layer
        self.strength, self.growth, self.threshold = strength, growth, threshold

    def attach(self, model: nn.Module) -> None:
        """Group the candidate layers.

        Raises:
            UsageError: The model has none, or the mapping lacks a block.
        """
        super().attach(model)
        self.layers = []
        found = [(n, m) for n, m in model.named_modules() if isinstance(m, CandidateLinear)]
        if not found:
            raise UsageError("selection: the model has no candidates; call add_candidates first")
        groups = [[pair] for pair in found] if self.per_layer else [found]
        self.groups = [_Group(dict(group), self._charges(group)) for group in groups]

    def _charges(self, group: Sequence[tuple[str, CandidateLinear]]) -> list[float]:
        """Charge of each candidate, with a mean of 1."""
        blocks = [group[0][1].of(k).block for k in range(len(group[0][1].candidates))]
        if isinstance(self.cost, Mapping):
            missing = [block for block in blocks if block not in self.cost]
            if missing:
                raise UsageError(f"cost: no entry for block {missing[0]}")
            raw = [self.cost[block] for block in blocks]
        else:
            cost_of = COSTS[self.cost] if isinstance(self.cost, str) else self.cost
            candidates = [[layer.of(k) for _, layer in group] for k in range(len(blocks))]
            raw = [sum(cost_of(c.shape, c.block, c.rank) for c in each) for each in candidates]
        if not all(math.isfinite(value) and value > 0 for value in raw):
            raise UsageError(f"cost: wanted positive numbers, got {raw} for blocks {blocks}")
        return [value * len(raw) / sum(raw) for value in raw]

    def on_step(self, learning_rate: float, progress: float) -> None:
        """Shrink the S of each candidate as a group; nothing once one is left."""
        strength = self.strength * self.growth**progress
        for group in self.groups:
            group.shrink(learning_rate * strength)

    def on_epoch(self, progress: float) -> None:
        """Drop candidates of too small a share."""
        for group in self.groups:
            group.drop(self.threshold, progress)

    def finish(self) -> None:
        """Stop the penalty."""
        self.finished = True

    @property
    def choices(self) -> list[Choice]:
        """One entry a group; ask after training."""
        return [group.choice() for group in self.groups]


class _Group:
    """Layers that choose together."""

    def __init__(self, layers: dict[str, CandidateLinear], charges: list[float]) -> None:
        self.layers, self.charges = layers, charges
        first = next(iter(layers.values()))
        self.blocks = [first.of(k).block for k in range(len(charges))]
        self.dropped: dict[Block, float] = {}

    def alive(self) -> list[int]:
        """Indices of the candidates that are left."""
        return [k for k, block in enumerate(self.blocks) if block not in self.dropped]

    def shares(self) -> list[float]:
        """Each candidate's share of the sum of all candidates' weight norms."""
        norms = [
            math.sqrt(
                sum(float(c.of(k).block_norms().square().sum()) for c in self.layers.values())
            )
            for k in range(len(self.blocks))
        ]
        alive = self.alive()
        total = sum(norms[k] for k in alive) or 1.0
        return [norms[k] / total if k in alive else 0.0 for k in range(len(norms))]

    def shrink(self, amount: float) -> None:
        """The proximal step of Σ charge sqrt(size) ‖S‖ over the candidates."""
        alive = self.alive()
        if len(alive) < 2:
            return
        for k in alive:
            scales = [c.of(k).S for c in self.layers.values()]
            size = sum(S.numel() for S in scales)
            norm = math.sqrt(sum(float(S.square().sum()) for S in scales))
            factor = 1 - amount * self.charges[k] * math.sqrt(size) / max(norm, 1e-12)
            for S in scales:
                S.mul_(max(factor, 0.0))

    def drop(self, threshold: float, progress: float) -> None:
        """Drop the candidate of the smallest share, if that is under the threshold.

        One at a time, so that those left can recover before the next goes. If the penalty has
        shrunk all of them to nothing, none is better than the others and none is dropped.
        """
        shares, alive = self.shares(), self.alive()
        least = min(alive, key=shares.__getitem__)
        if len(alive) < 2 or not any(shares) or shares[least] >= threshold:
            return
        self.dropped[self.blocks[least]] = progress
        for layer in self.layers.values():
            layer.alive[least] = False

    def choice(self) -> Choice:
        """What is left."""
        return Choice(
            tuple(self.layers),
            tuple(self.blocks[k] for k in self.alive()),
            dict(self.dropped),
            dict(zip(self.blocks, self.shares(), strict=True)),
        )


def keep_survivors(model: nn.Module, choices: Sequence[Choice], fresh: bool = True) -> nn.Module:
    """Replace each ``CandidateLinear`` by its survivor, to be trained again.

    Args:
        model: With candidates, after training.
        choices: From ``BlockSelection.choices``.
        fresh: Whether the survivor starts from new random factors. Those it has were shrunk by
            the penalty and trained as a part of a sum.

    Raises:
        UsageError: A choice is undecided.
    """
    replaced: dict[int, nn.Module] = {}
    for choice in choices:
        if not choice.decided:
            raise UsageError(f"selection: {choice}", hint="train longer or raise the growth")
        for name in choice.layers:
            layer = model.get_submodule(name)
            assert isinstance(layer, CandidateLinear)
            index = next(k for k, alive in enumerate(layer.alive) if alive)
            replaced[id(layer)] = _survivor(layer, index, fresh)
    return replace_modules(model, replaced)


def _survivor(layer: CandidateLinear, index: int, fresh: bool) -> BlockSparseLinear:
    old = layer.of(index)
    new = BlockSparseLinear(
        old.in_features, old.out_features, old.block, old.rank, bias=layer.bias is not None
    )
    if not fresh:
        new.load_state_dict(old.state_dict(), strict=False)
        if new.bias is not None:
            new.bias = layer.bias
    return new

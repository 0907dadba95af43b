"""From a few names and numbers to a trainer: what ``bscompile train`` runs.

The stages before the training proper, a dense teacher and the choice of a block, are run by
``run``, which the caller may replace to show how far they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn

from bscompile.errors import UsageError, did_you_mean
from bscompile.models.baselines import BlockPruning, BlockRigL, ElasticGroupLasso, GroupLasso
from bscompile.models.blocks import Block
from bscompile.models.convert import factorize, plan
from bscompile.models.data import Dataset
from bscompile.models.distill import distillation_loss
from bscompile.models.methods import GradualPruning, ProximalL1, SparsityMethod
from bscompile.models.selection import (
    BlockSelection,
    Cost,
    CostOf,
    add_candidates,
    keep_survivors,
)
from bscompile.models.train import Loss, TrainConfig, Trainer
from bscompile.models.zoo.registry import create

Names = tuple[str, ...]
FACTORIZED = ("gradual", "l1")
METHODS: dict[str, Callable[[float, Block, Names], SparsityMethod]] = {
    "gradual": lambda sparsity, block, dense: GradualPruning(sparsity),
    "l1": lambda sparsity, block, dense: ProximalL1(sparsity),
    "dense": lambda sparsity, block, dense: SparsityMethod(0.0, block, dense),
    "magnitude": BlockPruning,
    "group-lasso": GroupLasso,
    "elastic": ElasticGroupLasso,
    "rigl": BlockRigL,
}


@dataclass(frozen=True)
class Recipe:
    """What to train, and how.

    Attributes:
        model: Name in the zoo.
        block: (bh, bw) of every layer that it divides.
        rank: Number of Kronecker terms.
        sparsity: Share of blocks that end exactly zero.
        method: One of ``METHODS``; from ``"dense"`` on, layers are not factorized.
        select: Candidate blocks to choose from first; none to keep ``block``.
        cost: What the choice charges a block for; see ``BlockSelection``.
        per_layer: Whether every layer chooses for itself.
        distill: Whether to learn from a dense teacher, trained first.
        convolutions: Whether to factorize convolutions too.
        config: Epochs, rates, seed.
    """

    model: str = "mlp"
    block: Block = (8, 8)
    rank: int = 4
    sparsity: float = 0.75
    method: str = "gradual"
    select: tuple[Block, ...] = ()
    cost: Cost | CostOf = "flops"
    per_layer: bool = False
    distill: bool = False
    convolutions: bool = False
    config: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(
                f"unknown method {self.method!r}", hint=did_you_mean(self.method, METHODS)
            )
        if self.select and self.method not in FACTORIZED:
            raise UsageError("--select needs a factorized method", hint="--method gradual or l1")


def run_quietly(trainer: Trainer) -> None:
    """Train to the end."""
    trainer.fit()


def prepare(
    recipe: Recipe,
    data: Dataset,
    run: Callable[[Trainer], None] = run_quietly,
    say: Callable[[str], None] = lambda line: None,
) -> Trainer:
    """The model as the method wants it, in a trainer that is ready to run.

    Args:
        recipe: What to train.
        data: Rows to train on.
        run: Runs the stages that come first.
        say: Told what the stages came to, and which layers get another block.

    Raises:
        UsageError: A name is unknown, or the parts do not go together.
    """
    outputs = data.classes or data.y_train.shape[1]
    model, dense = create(recipe.model, data.features, outputs, recipe.config.seed)
    loss = _learn_from_teacher(recipe, data, run, say) if recipe.distill else None
    if recipe.select:
        model = _choose_block(recipe, model, dense, data, run, say)
    elif recipe.method in FACTORIZED:
        wanted = recipe.block, recipe.rank
        for step in plan(model, *wanted, exclude=dense, convolutions=recipe.convolutions):
            if step.message:
                say(str(step))
        model = factorize(model, *wanted, exclude=dense, convolutions=recipe.convolutions)
    method = METHODS[recipe.method](recipe.sparsity, recipe.block, dense)
    return Trainer(model, data, method, recipe.config, loss)


def _learn_from_teacher(
    recipe: Recipe, data: Dataset, run: Callable[[Trainer], None], say: Callable[[str], None]
) -> Loss:
    """Train a dense model of the same kind and make its answers part of the loss."""
    if not data.classes:
        raise UsageError("--distill needs classes", hint="use --data digits")
    model, _ = create(recipe.model, data.features, data.classes)
    teacher = Trainer(model, data, SparsityMethod(), recipe.config)
    run(teacher)
    say(f"teacher: accuracy {teacher.result.accuracy:.2%}")
    return distillation_loss(model)


def _choose_block(
    recipe: Recipe,
    model: nn.Module,
    dense: Names,
    data: Dataset,
    run: Callable[[Trainer], None],
    say: Callable[[str], None],
) -> nn.Module:
    """One run with all candidate blocks; the model with fresh layers of the survivor."""
    model = add_candidates(model, recipe.select, recipe.rank, exclude=dense)
    selection = BlockSelection(recipe.cost, recipe.per_layer)
    run(Trainer(model, data, selection, replace(recipe.config, finetune_epochs=0)))
    for choice in selection.choices:
        say(f"selected: {choice}")
    return keep_survivors(model, selection.choices)

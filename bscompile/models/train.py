"""A training loop: sparsify, cut to the target, then train on with the mask fixed.

Two phases with one cosine learning rate each. The loop reports the accuracy before and after
the cut, so that thresholding never changes the accuracy silently.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bscompile.errors import BscompileError, UsageError
from bscompile.models.data import Dataset
from bscompile.models.methods import SparsityMethod

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Attributes:
        epochs: Epochs in which the method sparsifies.
        finetune_epochs: Epochs after the cut, with the mask fixed.
        batch: Rows of a step.
        learning_rate: Peak of the first phase.
        finetune_rate: Peak of the second phase.
        weight_decay: Decoupled decay of weights, A and B; never of S, biases or norms.
        seed: Of the shuffling; the caller seeds the model.
        patience: Stop the second phase after so many epochs without a better training loss;
            0 never stops early.
    """

    epochs: int = 30
    finetune_epochs: int = 20
    batch: int = 64
    learning_rate: float = 5e-3
    finetune_rate: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.finetune_epochs < 0 or self.batch < 1:
            raise UsageError(
                f"training needs epochs >= 1, finetune epochs >= 0 and batch >= 1, got "
                f"{self.epochs}, {self.finetune_epochs} and {self.batch}"
            )


@dataclass(frozen=True)
class EpochLog:
    """What was measured after one epoch.

    Attributes:
        phase: ``"sparsify"`` or ``"finetune"``.
        epoch: Counted from 1 through both phases.
        loss: Mean training loss.
        accuracy: On the test rows; the share of correct classes, or R² for regression.
        sparsity: Share of exactly zero blocks.
        learning_rate: At the end of the epoch.
    """

    phase: str
    epoch: int
    loss: float
    accuracy: float
    sparsity: float
    learning_rate: float


@dataclass
class TrainResult:
    """How training went.

    Attributes:
        accuracy: At the end.
        sparsity: At the end: share of exactly zero blocks of the method's layers.
        before_cut: Accuracy just before the final cut.
        after_cut: Accuracy just after it.
        history: One entry an epoch.
    """

    accuracy: float = 0.0
    sparsity: float = 0.0
    before_cut: float = 0.0
    after_cut: float = 0.0
    history: list[EpochLog] = field(default_factory=list)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: matrices, A and B decay; S, biases, norms and embeddings' vectors do not.

    Decaying A and B but not S keeps the scale from drifting between them.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_scale = name.rpartition(".")[2] == "S"
        (free if parameter.ndim < 2 or is_scale else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def default_loss(data: Dataset) -> Loss:
    """Cross-entropy for classes, mean squared error for regression."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (
            nn.functional.cross_entropy(model(x), y)
            if data.classes
            else nn.functional.mse_loss(model(x), y)
        )

    return loss


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset) -> float:
    """Share of correct test rows, or R² over the test rows for regression."""
    was_training = model.training
    model.eval()
    outputs = model(data.x_test)
    model.train(was_training)
    if data.classes:
        return float((outputs.argmax(1) == data.y_test).double().mean())
    residual = (outputs - data.y_test).square().sum()
    return float(1 - residual / (data.y_test - data.y_test.mean(0)).square().sum())


class Trainer:
    """Runs both phases; can stop after any epoch and go on from a checkpoint.

    Args:
        model: Factorized or dense, as the method wants it.
        data: Rows to train on.
        method: What makes the zeros.
        config: How long and how fast.
        loss: From model and batch to a scalar; by the data's kind if not given.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        method: SparsityMethod,
        config: TrainConfig | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.model, self.data, self.method = model, data, method
        self.config = config or TrainConfig()
        self.loss = loss or default_loss(data)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, self.config.weight_decay))
        self.shuffle = torch.Generator().manual_seed(self.config.seed)
        self.done = 0
        self.result = TrainResult()
        method.attach(model)

    def run(self, checkpoint: Path | None = None) -> Iterator[EpochLog]:
        """Train, yielding after each epoch; ``result`` is complete when it ends.

        Args:
            checkpoint: File to write after each epoch; if it exists, training goes on from it.

        Raises:
            BscompileError: The loss is not finite.
            UsageError: The checkpoint is of another configuration.
        """
        from bscompile.models.checkpoint import load_checkpoint, save_checkpoint

        if checkpoint is not None and checkpoint.exists():
            load_checkpoint(checkpoint, self)
        total = self.config.epochs + self.config.finetune_epochs
        while self.done < total and not self._stalled():
            log = self._epoch()
            self.result.history.append(log)
            self.result.accuracy, self.result.sparsity = log.accuracy, log.sparsity
            if checkpoint is not None:
                save_checkpoint(checkpoint, self)
            yield log

    def fit(self) -> TrainResult:
        """Train to the end."""
        for _ in self.run():
            pass
        return self.result

    def _epoch(self) -> EpochLog:
        config, sparsifying = self.config, self.done < self.config.epochs
        first = 0 if sparsifying else config.epochs
        epochs = config.epochs if sparsifying else config.finetune_epochs
        peak = config.learning_rate if sparsifying else config.finetune_rate
        self.model.train()
        rows = len(self.data.x_train)
        steps = max(rows // config.batch, 1)
        order = torch.randperm(rows, generator=self.shuffle)
        losses, rate = [], peak
        for index, batch in enumerate(torch.split(order, config.batch)[:steps]):
            progress = (self.done - first + index / steps) / epochs
            rate = peak * 0.5 * (1 + math.cos(math.pi * progress))
            losses.append(self._step(batch, rate, progress + 1 / (steps * epochs)))
        self.done += 1
        self.method.epoch((self.done - first) / epochs)
        if self.done == config.epochs:
            self._cut()
        return EpochLog(
            "sparsify" if sparsifying else "finetune",
            self.done,
            sum(losses) / len(losses),
            accuracy(self.model, self.data),
            self.method.sparsity,
            rate,
        )

    def _step(self, batch: Tensor, rate: float, progress: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model, self.data.x_train[batch], self.data.y_train[batch])
        value = float(loss.detach())
        if not math.isfinite(value):
            raise BscompileError(
                f"training: loss is {value} in epoch {self.done + 1}",
                hint=f"lower the learning rate (now {rate:.2g}) or check the data",
            )
        penalty = self.method.penalty()
        total = loss if penalty is None else loss + penalty
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.method.step(rate, progress)
        return value

    def _cut(self) -> None:
        self.result.before_cut = accuracy(self.model, self.data)
        self.method.finish()
        self.result.after_cut = accuracy(self.model, self.data)
        logger.info(
            "cut to %.1f %% zero blocks: accuracy %.4f before, %.4f after",
            100 * self.method.sparsity,
            self.result.before_cut,
            self.result.after_cut,
        )

    def _stalled(self) -> bool:
        """Whether the last ``patience`` epochs of the second phase brought no better loss."""
        losses = [log.loss for log in self.result.history if log.phase == "finetune"]
        patience = self.config.patience
        if not patience or len(losses) <= patience:
            return False
        return min(losses[-patience:]) >= min(losses[:-patience])


def train(
    model: nn.Module,
    data: Dataset,
    method: SparsityMethod,
    config: TrainConfig | None = None,
) -> TrainResult:
    """Train a model to the method's sparsity; see ``Trainer`` for the parts."""
    return Trainer(model, data, method, config).fit()

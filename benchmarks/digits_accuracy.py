"""Accuracy against block sparsity on digits: the factorized methods beside the paper's baselines.

MLP 64-128-128-10, both hidden layers in b x b blocks, head dense; splits of 1437 training and 360
test images (standard error of one split about 0.8 points), the same splits and seeds for every
method; 30 epochs in which zeros are made, an exact cut, 20 epochs with the pattern fixed.
Printed: mean test accuracy in %, and its mean difference from iterative block magnitude pruning
with the standard error of that paired difference. Zero blocks are counted on |W|, exactly zero.

With --rates every method trains at other learning rates, the baselines too.

    python -m benchmarks.digits_accuracy [--seeds 5] [--rates 3e-3 1e-3] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import nn

from bscompile.models import (
    Dataset,
    GradualPruning,
    ProximalL1,
    SparsityMethod,
    TrainConfig,
    Trainer,
    factorize,
    load,
    merge,
)
from bscompile.models.baselines import BlockPruning, BlockRigL, ElasticGroupLasso, GroupLasso
from bscompile.models.blocks import live_blocks
from bscompile.models.distill import distillation_loss

BLOCKS, SPARSITIES, HEAD = (4, 8), (0.5, 0.75, 0.9), ["4"]
REFERENCE = "block magnitude"


@dataclass(frozen=True)
class Run:
    """What a method is given: split and seed, block, sparsity, the rates of both phases."""

    seed: int
    data: Dataset
    block: int
    sparsity: float
    rates: tuple[float, float] = (5e-3, 3e-3)

    @property
    def config(self) -> TrainConfig:
        """The protocol: 30 and 20 epochs, batches of 64."""
        fast, slow = self.rates
        return TrainConfig(30, 20, learning_rate=fast, finetune_rate=slow, seed=self.seed)

    def model(self) -> nn.Sequential:
        """A dense model, by the seed."""
        torch.manual_seed(self.seed)
        hidden = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()
        return nn.Sequential(*hidden, nn.Linear(128, 10))

    def train(self, model: nn.Module, method: SparsityMethod, **options: object) -> float:
        """Train to the end; return the test accuracy once the zeros of |W| were counted."""
        trainer = Trainer(model, self.data, method, self.config, **options)
        accuracy = trainer.fit().accuracy
        weights = [m.weight for m in merge(model)[:-1] if isinstance(m, nn.Linear)]
        live = [live_blocks(w.detach(), (self.block, self.block)) for w in weights]
        dead = 1 - sum(int(m.sum()) for m in live) / sum(m.numel() for m in live)
        assert dead >= self.sparsity - 0.005, f"{type(method).__name__}: sparsity {dead:.3f}"
        return accuracy


def dense(run: Run) -> float:
    return Trainer(run.model(), run.data, SparsityMethod(), run.config).fit().accuracy


def baseline(method: type[SparsityMethod]) -> Callable[[Run], float]:
    return lambda run: run.train(run.model(), method(run.sparsity, run.block, HEAD))


def ours(
    rank: int, method: Callable[[float], SparsityMethod] = GradualPruning
) -> Callable[[Run], float]:
    def train(run: Run) -> float:
        model = factorize(run.model(), run.block, rank, exclude=HEAD)
        return run.train(model, method(run.sparsity))

    return train


@cache
def teacher(seed: int, rates: tuple[float, float]) -> nn.Module:
    """A dense model from another start, trained as long and as fast as its students."""
    run = Run(seed, load("digits", seed), 1, 0.0, rates)
    model = replace(run, seed=seed + 100).model()
    Trainer(model, run.data, SparsityMethod(), run.config).fit()
    return model


def distilled(rank: int | None) -> Callable[[Run], float]:
    """From a dense teacher; without a rank the student is the dense model of the baseline."""

    def train(run: Run) -> float:
        loss = distillation_loss(teacher(run.seed, run.rates))
        if rank is None:
            method = BlockPruning(run.sparsity, run.block, HEAD)
            return run.train(run.model(), method, loss=loss)
        model = factorize(run.model(), run.block, rank, exclude=HEAD)
        return run.train(model, GradualPruning(run.sparsity), loss=loss)

    return train


def projected(run: Run) -> float:
    """Prune a dense model, take the nearest factors of its weights, train these on."""
    model = run.model()
    Trainer(model, run.data, BlockPruning(run.sparsity, run.block, HEAD), run.config).fit()
    model = factorize(model, run.block, 4, exclude=HEAD, start="nearest")
    return run.train(model, GradualPruning(run.sparsity))


METHODS: dict[str, Callable[[Run], float]] = {
    REFERENCE: baseline(BlockPruning),
    "block magnitude, distilled": distilled(None),
    "group lasso": baseline(GroupLasso),
    "elastic group lasso": baseline(ElasticGroupLasso),
    "block RigL": baseline(BlockRigL),
    "factorized r4, gradual": ours(4),
    "factorized r4, reweighted l1": ours(4, ProximalL1),
    "factorized r4, plain l1": ours(4, lambda s: ProximalL1(s, reweighted=False)),
    "factorized r8, gradual": ours(8),
    "factorized r2, gradual": ours(2),
    "factorized r1, gradual": ours(1),
    "factorized r4, distilled": distilled(4),
    "factorized r2, distilled": distilled(2),
    "factorized r1, distilled": distilled(1),
    "factorized r8, distilled": distilled(8),
    "factorized r4, projected": projected,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs=2, default=(5e-3, 3e-3))
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = [load("digits", seed) for seed in range(arguments.seeds)]
    rates = arguments.rates[0], arguments.rates[1]
    scores = np.array([dense(Run(i, d, 1, 0.0, rates)) for i, d in enumerate(data)])
    print(f"dense: {100 * scores.mean():.2f} +- {100 * scores.std(ddof=1):.2f}, {len(data)} seeds")
    cells = [(block, sparsity) for block in BLOCKS for sparsity in SPARSITIES]
    print(f"{'':30s}" + "".join(f"{f'b={b} s={s:g}':>16s}" for b, s in cells))
    reference: dict[tuple[int, float], np.ndarray] = {}
    for name in dict.fromkeys([REFERENCE, *arguments.only]):
        begun, row = time.perf_counter(), ""
        for cell in cells:
            got = np.array([METHODS[name](Run(i, d, *cell, rates)) for i, d in enumerate(data)])
            difference = 100 * (got - reference.setdefault(cell, got))
            error = difference.std(ddof=1) / len(data) ** 0.5 if len(data) > 1 else 0.0
            row += f"{100 * got.mean():6.2f} {difference.mean():+5.2f}~{error:3.2f}"
        print(f"{name:30s}{row}   {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()

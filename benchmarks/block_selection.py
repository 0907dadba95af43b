"""K block sizes in one run against K runs: what is chosen, how good it is, what it costs.

MLP 64-128-128-10 on digits, both hidden layers factorized, blocks 2x2, 4x4 and 8x8,
no zeros; splits and seeds as in digits_accuracy. For each charge: one run of 30 epochs with all
candidates under the growing penalty, then the survivor from fresh factors for 50 epochs. Beside
it each block on its own, 50 epochs. Wanted: the survivor within 1 point of the best block, in
the mean over the seeds, or "undecided" said.

FLOPs are 3 times forward, by formula, over all epochs and rows of training, in units of one
dense run's. "latency" is that of the CPU target's cost model for 128 rows at full density.

    python -m benchmarks.block_selection [--seeds 3] [--rank 4]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from bscompile import targets
from bscompile.models import SparsityMethod, TrainConfig, Trainer, factorize, load
from bscompile.models.function import cheapest_form, macs_per_row
from bscompile.models.selection import BlockSelection, add_candidates, keep_survivors
from bscompile.models.zoo import mlp
from bscompile.tuning.latency import layer_latency

BLOCKS, HEAD = ((2, 2), (4, 4), (8, 8)), ["4"]
SHAPES = ((128, 64), (128, 128))
CONFIG = TrainConfig(30, 20, learning_rate=5e-3, finetune_rate=3e-3)


def share_of_dense(block: tuple[int, int], rank: int) -> float:
    """FLOPs of a factorized step over a dense one's, hidden layers."""
    costs = [macs_per_row(s, block, rank)[cheapest_form(s, block, rank)] for s in SHAPES]
    return sum(costs) / sum(out * inner for out, inner in SHAPES)


def alone(seed: int, block: tuple[int, int], rank: int) -> float:
    """Accuracy of one block on its own."""
    torch.manual_seed(seed)
    model = factorize(mlp(64), block, rank, exclude=HEAD)
    config = replace(CONFIG, seed=seed)
    return Trainer(model, load("digits", seed), SparsityMethod(), config).fit().accuracy


def selected(seed: int, cost: object, rank: int) -> tuple[str, float | None]:
    """What one run chose, and the accuracy of the survivor trained again."""
    torch.manual_seed(seed)
    data, config = load("digits", seed), replace(CONFIG, seed=seed)
    model = add_candidates(mlp(64), BLOCKS, rank, exclude=HEAD)
    selection = BlockSelection(cost)  # type: ignore[arg-type]
    Trainer(model, data, selection, replace(config, finetune_epochs=0)).fit()
    (choice,) = selection.choices
    if not choice.decided:
        return str(choice).partition(": ")[2], None
    keep_survivors(model, selection.choices)
    accuracy = Trainer(model, data, SparsityMethod(), config).fit().accuracy
    return str(choice).partition(": ")[2], accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=4)
    given = parser.parse_args()
    seeds, rank = range(given.seeds), given.rank
    torch.set_num_threads(1)
    epochs = CONFIG.epochs + CONFIG.finetune_epochs
    shares = [share_of_dense(block, rank) for block in BLOCKS]
    top = 0.0
    for block in BLOCKS:
        got = 100 * np.array([alone(seed, block, rank) for seed in seeds])
        top = max(top, got.mean())
        cost = share_of_dense(block, rank)
        name = f"{block[0]}x{block[1]} alone"
        print(f"{name:22s}{got.mean():7.2f} %   FLOPs {cost:.2f}", flush=True)
    print(f"{'three runs, the best':22s}{top:7.2f} %   FLOPs {sum(shares):.2f}")
    latency = layer_latency(targets.resolve("cpu"), rows=128, density=1.0)
    for name, cost in (("flops",) * 2, ("parameters",) * 2, ("latency", latency), ("uniform",) * 2):
        chosen, accuracies = zip(*(selected(seed, cost, rank) for seed in seeds), strict=True)
        decided = [i for i in seeds if accuracies[i] is not None]
        line = f"one run, {name:13s}"
        if decided:
            got = 100 * np.array([accuracies[i] for i in decided], float)
            line += f"{got.mean():7.2f} %   against the best block {got.mean() - top:+.2f}   "
        print(f"{line}survivors: {'; '.join(chosen)}", flush=True)
    together = sum(shares) * CONFIG.epochs / epochs
    least, most = (f(shares) + together for f in (min, max))
    print(f"FLOPs of one run and its survivor: {least:.2f} to {most:.2f}, candidates never dropped")


if __name__ == "__main__":
    main()

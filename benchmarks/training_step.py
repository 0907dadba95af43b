"""What a training step costs, factorized against dense: time, parameters, saved activations.

MLP 1024-1024-1024-10 in fp32, AdamW; a step is forward, backward and update. Engines take turns
in one process on one thread; the time is the process's CPU time, the least of the repeats, so that
other work on the machine counts as little as it can. Beside it stands the FLOP count by formula:
forward 2 * multiply-adds, a step three times that, in % of dense.
Memory: 16 bytes a parameter (value, gradient, two moments of Adam), and what autograd keeps for
the backward pass besides parameters.

Wanted: b=8, r<=2 at most 0.35 of dense at 64 rows and 0.7 at 1024; parameters and optimizer at
most 10 %; saved activations at most dense's. r=4 at 1024 rows is a known loss.

    python -m benchmarks.training_step [--seconds 20]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from bscompile.models import BlockSparseLinear
from bscompile.models.function import cheapest_form, macs_per_row

WIDTH, ROWS = 1024, (64, 1024)
SETTINGS = ((4, 1), (8, 1), (8, 2), (8, 4), (16, 2))
LIMITS = {64: 0.35, 1024: 0.7}


def network(hidden: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(hidden(), nn.ReLU(), hidden(), nn.ReLU(), nn.Linear(WIDTH, 10))


class Contender:
    """A network, its optimizer and a batch; ``step`` is one training step."""

    def __init__(self, hidden: Callable[[], nn.Module], rows: int) -> None:
        self.model = network(hidden)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), foreach=True)
        self.x, self.y = torch.randn(rows, WIDTH), torch.randint(0, 10, (rows,))
        self.seconds: list[float] = []

    def loss(self) -> torch.Tensor:
        """Forward."""
        return nn.functional.cross_entropy(self.model(self.x), self.y)

    def step(self) -> None:
        """One step, timed."""
        begun = time.process_time()
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self.seconds.append(time.process_time() - begun)

    def saved_bytes(self) -> int:
        """What autograd keeps, parameters and masks left out, each storage once."""
        own = {t.untyped_storage().data_ptr() for t in self.model.state_dict().values()}
        kept: dict[int, int] = {}

        def keep(t: torch.Tensor) -> torch.Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = self.loss()
        del loss
        return sum(kept.values())


def contenders(rows: int) -> dict[str, tuple[Contender, float]]:
    """Name -> contender and its FLOPs over dense."""
    found = {"dense": (Contender(lambda: nn.Linear(WIDTH, WIDTH), rows), 1.0)}
    head, shape = WIDTH * 10, (WIDTH, WIDTH)
    for side, rank in SETTINGS:
        block = (side, side)
        cost = macs_per_row(shape, block, rank)[cheapest_form(shape, block, rank)]
        share = (2 * cost + head) / (2 * WIDTH * WIDTH + head)
        hidden = lambda side=side, rank=rank: BlockSparseLinear(WIDTH, WIDTH, side, rank)  # noqa: E731
        found[f"b={side} r={rank}"] = Contender(hidden, rows), share
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of rows")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    mib = 2.0**20
    for rows in ROWS:
        field = contenders(rows)
        end, rounds = time.monotonic() + seconds, 0
        while time.monotonic() < end or rounds < 5:
            rounds += 1
            for contender, _ in field.values():
                contender.step()
        dense = field["dense"][0]
        base, saved = min(dense.seconds), dense.saved_bytes()
        print(f"\n{rows} rows, {rounds} rounds; {WIDTH}-{WIDTH}-{WIDTH}-10, fp32, one thread")
        print("            step ms  of dense  FLOPs   params+grad+Adam MiB  saved MiB")
        for name, (contender, flops) in field.items():
            best = min(contender.seconds)
            count = sum(p.numel() for p in contender.model.parameters())
            kept = contender.saved_bytes()
            verdict = ""
            if name in ("b=8 r=1", "b=8 r=2"):
                ok = best / base <= LIMITS[rows] and kept <= saved
                verdict = f"wanted <= {LIMITS[rows]}: {'met' if ok else 'MISSED'}"
            print(
                f"{name:10s} {1e3 * best:8.2f} {best / base:8.2f} {flops:7.1%}"
                f" {16 * count / mib:20.2f} {kept / mib:12.2f}   {verdict}"
            )


if __name__ == "__main__":
    main()

"""What a training step costs, factorized against dense: time, parameters, saved activations.

MLP 1024-1024-1024-10 in fp32, AdamW; a step is forward, backward and update. Engines take turns
of four steps in one process on one thread, so that each finds in the caches what it finds there in
training; the time is the process's CPU time, the least of the repeats, so that other work on the
machine counts as little as it can. AdamW is torch's foreach one, which is what a CPU gets soonest;
--fused takes the fused one, which makes the dense network's update three times as cheap.
Beside it stands the FLOP count by formula: forward 2 * multiply-adds, a step three times that, in %
of dense.
Memory: 16 bytes a parameter (value, gradient, two moments of Adam), and what autograd keeps for
the backward pass besides parameters.

Wanted: b=8, r<=2 at most 0.35 of dense at 64 rows and 0.7 at 1024; parameters and optimizer at
most 10 %; saved activations at most dense's. r=4 at 1024 rows is next to no gain.

On a GPU the time is the wall time of a step between two synchronisations, and every factorized
network is measured in both the cheapest of the plain forms and the fused one. Wanted there: fused
below dense for r <= b/4 at every number of rows.

    python -m benchmarks.training_step [--seconds 20] [--fused]
    python -m benchmarks.training_step --device cuda --dtype float32 bfloat16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from bscompile.models import BlockSparseLinear
from bscompile.models.function import Form, cheapest_form, macs_per_row

WIDTH = 1024
ROWS = {"cpu": (64, 1024), "cuda": (256, 4096, 20000)}
SETTINGS = {
    "cpu": ((4, 1), (8, 1), (8, 2), (8, 4), (16, 2)),
    "cuda": ((4, 1), (8, 1), (8, 2), (16, 1), (16, 2), (16, 4), (32, 4), (32, 8)),
}
LIMITS = {64: 0.35, 1024: 0.7}
TURN = 4  # steps


def network(hidden: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(hidden(), nn.ReLU(), hidden(), nn.ReLU(), nn.Linear(WIDTH, 10))


class Contender:
    """A network, its optimizer and a batch; ``step`` is one training step."""

    def __init__(
        self,
        hidden: Callable[[], nn.Module],
        rows: int,
        device: str,
        dtype: torch.dtype,
        fused: bool,
    ) -> None:
        self.device = device
        self.model = network(hidden).to(device, dtype)
        kind = {"fused": True} if fused else {"foreach": True}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **kind)
        self.x = torch.randn(rows, WIDTH).to(device, dtype)
        self.y = torch.randint(0, 10, (rows,), device=device)
        self.seconds: list[float] = []

    def loss(self) -> torch.Tensor:
        """Forward."""
        return nn.functional.cross_entropy(self.model(self.x), self.y)

    def step(self) -> None:
        """One step, timed."""
        begun = self.now()
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self.seconds.append(self.now() - begun)

    def now(self) -> float:
        """CPU time of the process, or wall time once the GPU is idle."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

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


def contenders(
    rows: int, device: str, dtype: torch.dtype, fused: bool
) -> dict[str, tuple[Contender, float]]:
    """Name -> contender and its FLOPs over dense."""
    dense = Contender(lambda: nn.Linear(WIDTH, WIDTH), rows, device, dtype, fused)
    found = {"dense": (dense, 1.0)}
    head, shape = WIDTH * 10, (WIDTH, WIDTH)
    forms: tuple[Form | None, ...] = (None,) if device == "cpu" else (None, "fused")
    for side, rank in SETTINGS[device]:
        block = (side, side)
        cost = macs_per_row(shape, block, rank)[cheapest_form(shape, block, rank)]
        share = (2 * cost + head) / (2 * WIDTH * WIDTH + head)
        for form in forms:
            hidden = partial(_factorized, side, rank, form)
            name = f"b={side} r={rank}" + (f" {form}" if form else "")
            found[name] = Contender(hidden, rows, device, dtype, fused), share
    return found


def _factorized(side: int, rank: int, form: Form | None) -> BlockSparseLinear:
    layer = BlockSparseLinear(WIDTH, WIDTH, side, rank)
    layer.use_form(form)
    return layer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of rows")
    parser.add_argument("--device", choices=tuple(ROWS), default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="such as bfloat16")
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--fused", action="store_true", help="torch's fused AdamW")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.device == "cuda":
        print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for dtype in given.dtype:
        for rows in given.rows or ROWS[given.device]:
            table(rows, given.device, dtype, given.seconds, given.fused)


def table(rows: int, device: str, dtype: str, seconds: float, fused: bool) -> None:
    """Measure and print one table."""
    mib = 2.0**20
    field = contenders(rows, device, getattr(torch, dtype), fused)
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end or rounds < 5:
        rounds += 1
        for contender, _ in field.values():
            for _ in range(TURN):
                contender.step()
    dense = field["dense"][0]
    base, saved = min(dense.seconds), dense.saved_bytes()
    where = "one thread" if device == "cpu" else "GPU"
    update = "fused" if fused else "foreach"
    print(
        f"\n{rows} rows, {rounds} rounds; {WIDTH}-{WIDTH}-{WIDTH}-10, {dtype}, {where}, "
        f"{update} AdamW"
    )
    print("                  step ms  of dense  FLOPs   params+grad+Adam MiB  saved MiB")
    for name, (contender, flops) in field.items():
        best = min(contender.seconds)
        size = sum(4 * p.numel() * p.element_size() for p in contender.model.parameters())
        kept = contender.saved_bytes()
        verdict = ""
        if device == "cpu" and name in ("b=8 r=1", "b=8 r=2") and rows in LIMITS:
            ok = best / base <= LIMITS[rows] and kept <= saved
            verdict = f"wanted <= {LIMITS[rows]}: {'met' if ok else 'MISSED'}"
        elif name.endswith("fused"):
            verdict = f"wanted < dense: {'met' if best < base else 'MISSED'}"
        print(
            f"{name:16s} {1e3 * best:8.2f} {best / base:8.2f} {flops:7.1%}"
            f" {size / mib:20.2f} {kept / mib:12.2f}   {verdict}"
        )


if __name__ == "__main__":
    main()

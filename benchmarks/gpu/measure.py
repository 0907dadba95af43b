"""Check every kernel against float64, then time it, cuBLAS and torch's block-sparse kernel.

FLOPs      2 · rows · live blocks · block²
bytes      2 · (rows · k + rows · n + live blocks · block²)
roof       max(FLOPs / peak, bytes / memory rate): x is read once

Peak and memory rate are measured first, in the same run.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.cases import ROWS, Case

_TOLERANCE = 8e-3  # of the norm: y is rounded to bfloat16


@dataclass(frozen=True)
class Ceilings:
    """What the device reached.

    Attributes:
        tflops: cuBLAS, bfloat16, 8192 cubed.
        memory_tbs: A copy of 1 GiB, read and written.
        launch_us: The smallest kernel inside a graph.
    """

    tflops: float
    memory_tbs: float
    launch_us: float


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        case: Name of the case.
        rows: Of x.
        runner: ``cublas``, ``torch bsr`` or ``ours: <kernel>``.
        us: Of one call.
        error: Norm of the difference to float64 over its norm.
        speedup: cuBLAS' time over this one.
        roof_share: Of the roof, for the work that is left.
    """

    case: str
    rows: int
    runner: str
    us: float
    error: float
    speedup: float
    roof_share: float


def run(device: Any, folder: Path, budget: float, small: bool) -> tuple[Ceilings, list[Row]]:
    """Everything, until the budget in seconds is spent."""
    started = time.perf_counter()
    listed = json.loads((folder / "kernels.json").read_text())
    ceilings = measure_ceilings(device, 64 if small else 8192)
    print(f"{device.name}: {ceilings}", flush=True)
    rows: list[Row] = []
    loaded: dict[str, Any] = {}
    for entry in listed["cases"]:
        case = Case(**{k: v for k, v in entry.items() if k != "uses"})
        weight = make_weight(case, device.place)
        for m in (1, 17) if small else ROWS:
            if time.perf_counter() - started > budget:
                print(f"stopped at {case.name}, rows {m}: {budget:.0f} s are spent", flush=True)
                return ceilings, rows
            rows += _measure(device, folder, listed, entry, case, weight, m, ceilings, loaded)
    return ceilings, rows


def _measure(
    device: Any,
    folder: Path,
    listed: dict[str, Any],
    entry: dict[str, Any],
    case: Case,
    weight: torch.Tensor,
    m: int,
    ceilings: Ceilings,
    loaded: dict[str, Any],
) -> list[Row]:
    """One case with one number of rows: the peers first, then ours."""
    place = device.place
    generator = torch.Generator(place).manual_seed(m)
    x = torch.randn(m, case.k, generator=generator, device=place, dtype=torch.bfloat16)
    bias = torch.randn(case.n, generator=generator, device=place, dtype=torch.bfloat16)
    wanted = torch.relu(x.double() @ weight.double().T + bias.double())
    dense_copies = _copies(weight, device.cache_bytes, most=4)
    base = device.time([lambda w=w: torch.nn.functional.linear(x, w, bias) for w in dense_copies])
    found: list[Row] = []

    def add(runner: str, seconds: float, error: float) -> None:
        row = Row(
            *(case.name, m, runner, seconds * 1e6, error, base / seconds),
            roof_share=_roof(case, m, ceilings) / seconds,
        )
        found.append(row)
        bad = "" if error < _TOLERANCE else "  WRONG"
        print(
            f"{case.name:20} {m:5} {row.us:9.2f} us {row.speedup:6.2f}x {error:.1e} {runner}{bad}",
            flush=True,
        )

    add("cublas", base, relative(torch.relu(torch.nn.functional.linear(x, weight, bias)), wanted))
    _torch_bsr(device, case, weight, x, bias, wanted, add)
    for use in entry["uses"]:
        kernel = listed["kernels"][use["kernel"]]
        few = kernel["template"].endswith("few_rows")
        if few != (m <= 8) and not (few and m <= 16):
            continue
        if use["kernel"] not in loaded:
            loaded[use["kernel"]] = device.load(folder / kernel["library"])
        function = loaded[use["kernel"]]
        values, *others = pack(weight, folder / use["places"], place)
        y = torch.full((m, case.n), math.nan, device=place, dtype=torch.bfloat16)
        function(x, values, *others, bias, y)
        error = relative(y, wanted)
        calls = [
            lambda v=v: function(x, v, *others, bias, y)  # noqa: B023
            for v in _copies(values, device.cache_bytes, most=16)
        ]
        add(f"ours: {use['kernel']}", device.time(calls), error)
    return found


def _torch_bsr(
    device: Any,
    case: Case,
    weight: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor,
    wanted: Any,
    add: Any,
) -> None:
    """Torch's Triton kernel, with the parameters that it picks itself."""
    if device.place != "cuda" or case.block < 16 or len(x) % 16:
        return
    from torch.sparse._triton_ops import bsr_dense_addmm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            bsr = weight.to_sparse_bsr((case.block, case.block))
            added = bias[:, None].expand(case.n, len(x)).contiguous()
            y = torch.relu(bsr_dense_addmm(added, bsr, x.T))
            seconds = device.time([lambda: bsr_dense_addmm(added, bsr, x.T)])
        except Exception as error:  # a peer that refuses a case is said, not hidden
            print(f"{case.name:20} {len(x):5} torch bsr refuses: {str(error)[:90]}", flush=True)
            return
    add("torch bsr", seconds, relative(y.T, wanted))


def make_weight(case: Case, place: str) -> torch.Tensor:
    """W [n, k] in bfloat16, zero where the case's mask is."""
    generator = torch.Generator(place).manual_seed(0)
    weight = torch.randn(case.n, case.k, generator=generator, device=place) / math.sqrt(case.k)
    mask = torch.from_numpy(case.mask()).to(place)
    wide = mask.repeat_interleave(case.block, 0).repeat_interleave(case.block, 1)
    return (weight * wide).to(torch.bfloat16)


def pack(weight: torch.Tensor, places: Path, place: str) -> tuple[torch.Tensor, ...]:
    """The packed weight and what goes with it, as the kernels take them, in their order."""
    with np.load(places) as held:
        names = torch.from_numpy(held["names"].cumsum(axis=2).cumsum(axis=1)).to(place)
        run = int(held["run"])
        others = [held[f"other{i}"] for i in range(len(held.files) - 2)]
    runs = torch.cat([weight.reshape(-1, run), weight.new_zeros(1, run)])  # -1 is the zeros
    values = runs[names].reshape(*names.shape[:2], -1)
    return values, *(torch.from_numpy(array).to(place) for array in others)


def measure_ceilings(device: Any, side: int) -> Ceilings:
    """Peak, memory rate and launch cost of this device, now."""
    a, b = (torch.randn(side, side, device=device.place, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * side**3 / device.time([lambda: a @ b.T]) / 1e12
    big = torch.empty((side * side) << 4, dtype=torch.uint8, device=device.place)
    other = torch.empty_like(big)
    memory = 2 * big.numel() / device.time([lambda: other.copy_(big)]) / 1e12
    one = torch.zeros(1, device=device.place)
    return Ceilings(peak, memory, device.time([lambda: one.add_(1)]) * 1e6)


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm; NaN where anything is NaN."""
    return float((got.double() - wanted).norm() / wanted.norm())


def _roof(case: Case, m: int, ceilings: Ceilings) -> float:
    numbers = float(case.mask().sum()) * case.block**2
    traffic = 2.0 * (m * case.k + m * case.n + numbers)
    return max(2 * m * numbers / (ceilings.tflops * 1e12), traffic / (ceilings.memory_tbs * 1e12))


def _copies(tensor: torch.Tensor, cache_bytes: int, most: int) -> list[torch.Tensor]:
    size = tensor.numel() * tensor.element_size()
    count = min(most, max(1, math.ceil(3 * cache_bytes / size)))
    return [tensor, *(tensor.clone() for _ in range(count - 1))]


def to_json(device: Any, ceilings: Ceilings, rows: list[Row]) -> dict[str, Any]:
    """Everything that was measured, as it goes into the file."""
    return {
        "device": device.name,
        "torch": torch.__version__,
        "ceilings": asdict(ceilings),
        "rows": [asdict(row) for row in rows],
    }

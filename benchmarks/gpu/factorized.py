"""Factorized layers against the same layers in blocks: who wins for which rank and block.

W = Σᵣ Aᵣ ⊗ Bᵣ with 10 % of the entries of A live; r from 1 to 4, blocks from 16 to 64. The kernel
never builds W. Its rows go into the report beside those of block-sparse kernels of equal density.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.cases import DTYPE, SHAPES, Case
from benchmarks.gpu.measure import Ceilings, Row, relative
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Problem

_RANKS, _BLOCKS, _ROWS, _DENSITY = (1, 2, 3, 4), (16, 32, 64), (1, 16, 256, 1024), 0.1


def cases(small: bool) -> list[tuple[Case, int]]:
    """(mask and shape, rank)."""
    if small:
        return [(Case("small", 64, 64, 16, 0.3), 2)]
    return [
        (Case(shape, *SHAPES[shape], block, _DENSITY), rank)
        for shape in ("bert", "llama")
        for block in _BLOCKS
        for rank in _RANKS
    ]


def build(folder: Path, arch: str, compile_code: Callable[[str, str], bytes], small: bool) -> int:
    """Compile the kernel of every case for few and for many rows; returns how many kernels."""
    from bscompile.targets.cuda.build import compile_kernel, cuda_source
    from bscompile.targets.cuda.hardware import hardware
    from bscompile.targets.cuda.kernels.kronecker import KroneckerTemplate

    machine, template, listed = hardware(arch), KroneckerTemplate(), []
    for case, rank in cases(small):
        sides = case.n // case.block, case.k // case.block
        tiny = KroneckerSum(
            np.zeros((rank, *sides), np.float32),
            np.zeros((rank, case.block, case.block), np.float32),
        )
        for rows in (1,) if small else (1, 256):
            problem = Problem(
                *("kronecker", None, case.n, case.k, (case.block, case.block)),
                *(int(case.mask().sum()), rank, DTYPE, ("bias", "relu")),
                typical_m=rows,
                x_dtype=DTYPE,
                y_dtype=DTYPE,
            )
            space = template.space(problem, machine)
            if not space:  # Z of one row does not fit shared memory
                continue
            name = f"kronecker-{case.name}-r{rank}-m{rows}"
            kernel = template.build(problem, tiny, space[0], machine)
            executable = compile_kernel(kernel.prim_func, machine)
            source = cuda_source(executable)
            executable.export_library(str(folder / f"{name}.so"))
            digest = hashlib.sha256(source.encode()).hexdigest()[:16]
            (folder / f"{digest}.fatbin").write_bytes(compile_code(source, machine.isa))
            listed.append({"case": case.name, "rank": rank, "few": rows == 1, "name": name})
    (folder / "factorized.json").write_text(json.dumps(listed, indent=1))
    return len(listed)


def run(device: Any, folder: Path, ceilings: Ceilings, budget: float, small: bool) -> list[Row]:
    """Check and time every kernel, until the budget in seconds is spent."""
    started, found = time.perf_counter(), []
    listed = json.loads((folder / "factorized.json").read_text())
    by_name = {(case.name, rank): case for case, rank in cases(small)}
    for entry in listed:
        case, rank = by_name[entry["case"], entry["rank"]], int(entry["rank"])
        function = device.load(folder / f"{entry['name']}.so")
        operands, weight = _operands(case, rank, device.place)
        for rows in (1, 5) if small else [m for m in _ROWS if (m <= 16) == entry["few"]]:
            if time.perf_counter() - started > budget:
                print(f"stopped at {entry['name']}: {budget:.0f} s are spent", flush=True)
                return found
            found.append(_measure(device, case, rank, rows, function, operands, weight, ceilings))
            row = found[-1]
            print(f"{row.case:24} {row.rows:5} {row.us:9.2f} us {row.error:.1e}", flush=True)
    return found


def _operands(case: Case, rank: int, place: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(coefficients, indices, indptr, factors) as ``pack_factors`` lays them out, and W."""
    mask, block = case.mask(), case.block
    generator = torch.Generator(place).manual_seed(rank)
    options: dict[str, Any] = {"generator": generator, "device": place}
    scale = math.sqrt(case.k * _DENSITY * rank)
    live = torch.from_numpy(mask).to(place)
    a = (torch.randn(rank, *mask.shape, **options) / scale).bfloat16() * live
    b = torch.randn(rank, block, block, **options).bfloat16()  # [r, bh, bw]
    weight = sum(torch.kron(a[r].float(), b[r].float()) for r in range(rank))
    rows, columns = np.nonzero(mask)
    coefficients = a[:, torch.from_numpy(rows).to(place), torch.from_numpy(columns).to(place)]
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    operands = [
        coefficients.T.contiguous(),
        torch.from_numpy(columns.astype(np.int32)).to(place),
        torch.from_numpy(indptr).to(place),
        b.transpose(1, 2).contiguous(),
    ]
    return operands, weight


def _measure(
    device: Any,
    case: Case,
    rank: int,
    rows: int,
    function: Callable[..., Any],
    operands: list[torch.Tensor],
    weight: torch.Tensor,
    ceilings: Ceilings,
) -> Row:
    place = device.place
    x, bias = (
        torch.randn(*shape, device=place, dtype=torch.bfloat16)
        for shape in ((rows, case.k), (case.n,))
    )
    y = torch.full((rows, case.n), math.nan, device=place, dtype=torch.bfloat16)
    function(x, *operands, bias, y)
    wanted = torch.relu(x.double() @ weight.double().T + bias.double())
    error = relative(y, wanted)
    dense = weight.bfloat16()
    base = device.time([lambda: torch.nn.functional.linear(x, dense, bias)])
    seconds = device.time([lambda: function(x, *operands, bias, y)])
    flops = 2.0 * rows * rank * (case.k * case.block + float(case.mask().sum()) * case.block)
    traffic = 2.0 * (rows * (case.k + case.n) + sum(part.numel() for part in operands))
    roof = max(flops / (ceilings.tflops * 1e12), traffic / (ceilings.memory_tbs * 1e12))
    name = f"{case.name}-r{rank}"
    return Row(name, rows, "ours: kronecker", seconds * 1e6, error, base / seconds, roof / seconds)

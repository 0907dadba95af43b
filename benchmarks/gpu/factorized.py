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

from benchmarks.gpu.cases import DTYPE, SHAPES, Case
from benchmarks.gpu.device import Array, rounded, widened
from benchmarks.gpu.measure import TOLERANCE, Ceilings, Peers, Row, checked

_RANKS, _BLOCKS, _ROWS, _DENSITY = (1, 2, 3, 4), (16, 32, 64), (1, 16, 256, 1024), 0.1


def cases(small: bool) -> list[tuple[Case, int]]:
    """(mask and shape, rank)."""
    if small:
        return [(Case("small", 64, 64, 16, 0.3), 2)]
    return [
        (Case(shape, *SHAPES[shape], block, _DENSITY), rank)
        for shape in ("llama", "bert")  # what there may be no time for comes last
        for rank in _RANKS
        for block in _BLOCKS
    ]


def build(folder: Path, arch: str, compile_code: Callable[[str, str], bytes], small: bool) -> int:
    """Compile the kernel of every case for few and for many rows; returns how many kernels."""
    from bscompile.formats import KroneckerSum
    from bscompile.targets.base import Problem
    from bscompile.targets.cuda.build import compile_alone, cuda_source
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
            executable = compile_alone(kernel.prim_func, machine)
            source = cuda_source(executable)
            executable.export_library(str(folder / f"{name}.so"))
            digest = hashlib.sha256(source.encode()).hexdigest()[:16]
            (folder / f"{digest}.fatbin").write_bytes(compile_code(source, machine.isa))
            listed.append({"case": case.name, "rank": rank, "few": rows == 1, "name": name})
    (folder / "factorized.json").write_text(json.dumps(listed, indent=1))
    return len(listed)


def run(
    device: Any, folder: Path, peers: Peers, ceilings: Ceilings, budget: float
) -> tuple[list[Row], list[str]]:
    """(rows, names of the kernels that the budget in seconds did not suffice for)."""
    started, found = time.perf_counter(), []
    listed = json.loads((folder / "factorized.json").read_text())
    small = all(entry["case"].startswith("small") for entry in listed)
    by_name = {(case.name, rank): case for case, rank in cases(small)}
    for number, entry in enumerate(listed):
        if time.perf_counter() - started > budget:
            return found, [other["name"] for other in listed[number:]]
        case, rank = by_name[entry["case"], entry["rank"]], int(entry["rank"])
        function = device.load(folder / f"{entry['name']}.so")
        operands, weight = _operands(case, rank)
        tensors = [device.put(part, DTYPE if part.dtype == np.uint16 else "") for part in operands]
        for rows in (1, 5) if small else [m for m in _ROWS if (m <= 16) == entry["few"]]:
            row = _measure(device, case, rank, rows, function, tensors, weight, ceilings, peers)
            found.append(row)
            bad = "" if row.error < TOLERANCE else "  WRONG"
            print(f"{row.case:24} {row.rows:5} {row.us:9.2f} us {row.error:.1e}{bad}", flush=True)
    return found, []


def _operands(case: Case, rank: int) -> tuple[list[Array], Array]:
    """(coefficients, indices, indptr, factors) as ``pack_factors`` lays them out, and W."""
    mask, block = case.mask(), case.block
    rng = np.random.default_rng(rank)
    scale = math.sqrt(case.k * _DENSITY * rank)
    a = rounded(rng.standard_normal((rank, *mask.shape), np.float32) / np.float32(scale))
    a *= mask.astype(np.uint16)
    b = rounded(rng.standard_normal((rank, block, block), np.float32))  # [r, bh, bw]
    weight = np.zeros((case.n, case.k), np.float32)
    for term, factor in zip(widened(a), widened(b), strict=True):
        weight += np.kron(term, factor)
    rows, columns = np.nonzero(mask)
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    operands = [
        np.ascontiguousarray(a[:, rows, columns].T),
        columns.astype(np.int32),
        indptr,
        np.ascontiguousarray(b.transpose(0, 2, 1)),
    ]
    return operands, weight


def _measure(
    device: Any,
    case: Case,
    rank: int,
    rows: int,
    function: Callable[..., Any],
    operands: list[Any],
    weight: Array,
    ceilings: Ceilings,
    peers: Peers,
) -> Row:
    rng = np.random.default_rng(1)
    few = rounded(rng.standard_normal((min(rows, 16), case.k), np.float32))
    bias = rounded(rng.standard_normal(case.n, np.float32))
    x = np.resize(few, (rows, case.k))
    held, beside = device.put(x, DTYPE), device.put(bias, DTYPE)
    y = device.put(np.full((rows, case.n), 0x7FC0, np.uint16), DTYPE)  # NaN
    function(held, *operands, beside, y)
    wanted = np.maximum(widened(few).astype(np.float64) @ weight.T + widened(bias), 0)
    error = checked(device.get(y), wanted)
    base, _ = peers.dense(device, rounded(weight), x)
    seconds = device.time([lambda: function(held, *operands, beside, y)])
    flops = 2.0 * rows * rank * (case.k * case.block + float(case.mask().sum()) * case.block)
    numbers = sum(math.prod(int(size) for size in part.shape) for part in operands)
    traffic = 2.0 * (rows * (case.k + case.n) + numbers)
    roof = max(flops / (ceilings.tflops * 1e12), traffic / (ceilings.memory_tbs * 1e12))
    name = f"{case.name}-r{rank}"
    return Row(name, rows, "ours: kronecker", seconds * 1e6, error, base / seconds, roof / seconds)

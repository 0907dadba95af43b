"""How much less does a tenth of the blocks take than the same target's own dense kernel?

Run: python -m benchmarks.sparse_against_dense [TARGET ...]. A layer 768 -> 768 on 128 rows, dense
and with 10 % of its blocks live, each by the kernel that the target's cost model takes, in every
dtype that the target multiplies in. Every result is checked against float64, then measured as
``bscompile tune`` does it: by the device's clock in turns, by the array's cycles, by instructions
under qemu. int8 layers take and give 8 bits, as between the layers of a quantised model. Rows are
kept in results/sparse_against_dense.json; a ratio below 4 is called a loss.

cuda is measured by benchmarks.gpu where there is a GPU: its emulator counts nothing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from bscompile.dialect import LinearOp
from bscompile.dialect.precision import PRECISIONS, in_precision
from bscompile.dialect.quantization import Quantization
from bscompile.formats import BlockSparseMatrix
from bscompile.targets import resolve
from bscompile.targets.base import KernelTemplate, TargetContext, problem_of
from bscompile.tuning.record import OK, Variant
from bscompile.tuning.runner import LocalRunner
from bscompile.tuning.timing import Bench
from tests.targets.adapters import adapters

ROWS, SIDE, DENSITY, WANTED = 128, 768, 0.1, 4.0
BLOCKS = (16, 32)
RESULTS = Path(__file__).parent / "results" / "sparse_against_dense.json"


def main() -> int:
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for adapter in adapters():
        if adapter.target == "cuda" or (sys.argv[1:] and adapter.target not in sys.argv[1:]):
            continue
        if reason := adapter.missing():
            print(f"{adapter.target}: left out, {reason}")
            continue
        rows[adapter.target] = measured(adapter.target, adapter.dtypes)
        RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
        for line in lines(adapter.target, rows[adapter.target]):
            print(line, flush=True)
    return 0


def measured(target: str, dtypes: tuple[str, ...]) -> dict:
    """What the measure counts, and dtype -> block -> (dense, block-sparse)."""
    context = resolve(target, 1)
    if target == "systolic":  # all else runs on the host, as target cpu does it
        dtypes = ("int8",)
    times = {dtype: {str(b): pair(context, dtype, b) for b in BLOCKS} for dtype in dtypes}
    return {"counts": context.target.counts or "time", "seconds": times}


def pair(context: TargetContext, dtype: str, block: int) -> tuple[float, float]:
    """Seconds of the dense and of the block-sparse kernel, in turns."""
    rng = np.random.default_rng(0)
    live = rng.random((SIDE // block, SIDE // block)) < DENSITY
    weight = rng.standard_normal((SIDE, SIDE)) * np.kron(live, np.ones((block, block)))
    matrix = BlockSparseMatrix.from_dense(weight.astype(np.float32), (block, block))
    precision = PRECISIONS[dtype]
    op = in_precision(LinearOp("layer", matrix), precision)
    if op.quantization is not None:
        ends = Quantization(
            op.quantization.scale, "static", "uint8", "uint8", 0.03, 128, "uint8", 0.5, 128
        )
        op = replace(op, quantization=ends)
    hardware = context.hardware.extended(dtype)
    bench = Bench(op, ROWS, precision, ROWS, context.target, hardware, LocalRunner())
    found = bench.measure(
        [cheapest(context, dtype, op.with_weight(w)) for w in (op.weight.to_dense(), op.weight)],
        rounds=15,
        give_up=None,
    )
    for measurement in found:
        if measurement.status != OK:
            sys.exit(f"{context.target.name} {dtype}: {measurement.detail}")
    dense, sparse = (min(measurement.seconds) for measurement in found)
    return dense, sparse


def cheapest(context: TargetContext, dtype: str, op: LinearOp) -> tuple[Variant, KernelTemplate]:
    """The candidate of the op's form that the target's cost model takes."""
    problem = problem_of(op, ROWS, PRECISIONS[dtype])
    hardware = context.hardware.extended(dtype)
    found = [
        (template.cost(problem, space[0], hardware), template.name, space[0], template)
        for template in context.target.templates
        if (space := template.space(problem, hardware))
    ]
    _, name, config, template = min(found, key=lambda one: one[:2])
    return Variant(problem.form, problem.block, name, config), template


def lines(target: str, row: dict) -> list[str]:
    """For people."""
    told = []
    for dtype, blocks in row["seconds"].items():
        for block, (dense, sparse) in blocks.items():
            ratio = dense / sparse
            verdict = "" if ratio >= WANTED else f"  LOSS, {WANTED:g} was wanted"
            shape = f"{block}x{block}"
            told.append(
                f"{target:20} {dtype:9} {shape:6} {dense * 1e6:11.1f} {sparse * 1e6:10.1f} us "
                f"{ratio:6.2f}  by {row['counts']}{verdict}"
            )
    return told


if __name__ == "__main__":
    sys.exit(main())

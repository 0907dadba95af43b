"""The table of targets in docs/targets.md: what each was executed on, how exactly, what it chooses.

Run: python -m benchmarks.target_table [TARGET ...]. Rows of the named targets (all without names)
are made anew and kept in results/targets.json; then the table on the page is written from all rows.

    max error   of the numeric suite: |got - wanted| over the largest |wanted|, per weight dtype
    models      whole models of 16x16 blocks that equal onnxruntime, with their largest error
    against dense   dense over 10 % of 16x16 blocks, from results/sparse_against_dense.json; by
                time on a device, else by what is counted
    blocks      what a layer of 768 x 768, a tenth of its blocks live, runs as at 128 rows
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch

import bscompile
from bscompile.dialect import LinearOp
from bscompile.errors import BscompileError
from bscompile.formats import BlockSparseMatrix
from bscompile.targets import resolve
from bscompile.targets.base import TargetContext
from bscompile.targets.planner import plan
from tests.end_to_end.families import FAMILIES, export, with_weights, zero_blocks
from tests.targets.adapters import adapters
from tests.targets.numeric_suite import Adapter, results

RESULTS = Path(__file__).parent / "results" / "targets.json"
RATIOS = Path(__file__).parent / "results" / "sparse_against_dense.json"
PAGE = Path(__file__).parent.parent / "docs" / "targets.md"
MARKS = ("<!-- table: python -m benchmarks.target_table -->", "<!-- end of table -->")
#: What runs the kernels where it is not the machine itself.
EXECUTED_ON = {
    "cpu": "the processor itself",
    "hexagon": "qemu-hexagon",
    "systolic": "RTL under Verilator",
    "cpu:aarch64": "qemu-aarch64",
    "cpu:riscv64": "qemu-riscv64",
}
CODEGEN_ONLY = ("metal", "rocm")
NARROW = ("hexagon", "systolic")  # made for int8 weights
MODELS = ("mlp", "lenet5", "vit")
#: Largest error of a model that counts as right, over the largest value.
TOLERANCE = {"float32": 1e-4, "int8": 0.1}


def main() -> int:
    """Measure the targets named and write the table."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wanted = sys.argv[1:]
    for adapter in adapters():
        if wanted and adapter.target not in wanted:
            continue
        if reason := adapter.missing():
            print(f"{adapter.target}: left out, {reason}")
            continue
        rows[adapter.target] = executed(adapter)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        print(line(adapter.target, rows[adapter.target]), flush=True)
    for target in CODEGEN_ONLY:
        if not wanted or target in wanted:
            rows[target] = {"on": "code generation only", "blocks": blocks(resolve(target))}
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    write_page(rows)
    return 0


def executed(adapter: Adapter) -> dict[str, Any]:
    """One row, by running everything."""
    errors: dict[str, float] = {}
    for case, several in results(adapter).items():
        for result in several:
            scale = max(float(np.abs(result.wanted).max(initial=0)), 1e-6)
            error = float(np.abs(result.got - result.wanted).max(initial=0)) / scale
            errors[case.dtype] = max(errors.get(case.dtype, 0.0), error)
    return {
        "on": place(adapter),
        "errors": errors,
        "models": models(adapter),
        "blocks": blocks(adapter.context),
    }


def place(adapter: Adapter) -> str:
    """What the kernels were run by."""
    name, _, variant = adapter.target.partition(":")
    if name == "cuda":
        from tests.targets.cuda.adapter import emulated

        return "an emulator of CUDA kernels" if emulated() else adapter.context.hardware.name
    known = EXECUTED_ON.get(f"{name}:{variant.partition('-')[0]}".rstrip(":"))
    detail = adapter.context.target.detect().detail
    device = "PoCL" if "Portable Computing Language" in detail else detail.partition(" (")[0]
    return known or device.partition(",")[0]


def models(adapter: Adapter) -> dict[str, float]:
    """Whole models that run there -> the error of their answer."""
    right, target = {}, adapter.target
    dtype = "int8" if target in NARROW else "float32"
    for name in MODELS:
        with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
            try:
                with compiled_to_run_here(target):
                    error = model_error(name, target, dtype, Path(folder))
            except BscompileError as refused:
                print(f"{target} {name}: {refused}")
                continue
        print(f"{target} {name}: error {error:.1e}", flush=True)
        if error <= TOLERANCE[dtype]:
            right[name] = error
    return right


@contextmanager
def compiled_to_run_here(target: str) -> Iterator[None]:
    """On cuda without a GPU: models are compiled for the emulated device."""
    if target != "cuda":
        yield
        return
    from tests.targets.cuda import adapter, emulator

    adapter.ready()
    if not adapter.emulated():
        yield
        return
    compiler = "bscompile.targets.cuda.build.compile_source"
    with mock.patch(compiler, lambda source, _: emulator.compile_source(source)):
        yield


def model_error(name: str, target: str, dtype: str, folder: Path) -> float:
    """Largest difference from onnxruntime, over the largest value."""
    family, path = FAMILIES[name], folder / "model.onnx"
    dense = onnx.load(export(family, folder / "dense.onnx"))
    onnx.save(with_weights(dense, zero_blocks((16, 16), 0.2)), path)
    torch.manual_seed(0)
    feeds = {key: value.numpy() for key, value in family.inputs(False, 2).items()}
    compiled = bscompile.build(path, target=target, dtype=dtype)
    with bscompile.load(compiled.save(folder / "model.bsc")) as loaded:
        (got,) = loaded.run(feeds).values()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, feeds)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def blocks(context: TargetContext) -> dict[str, str]:
    """Trained block -> what the target's cost model runs the layer as."""
    dtype = np.dtype(np.int8 if context.target.name in NARROW else np.float32)
    chosen = {}
    for block in (16, 8):
        rng = np.random.default_rng(0)
        live = rng.random((768 // block, 768 // block)) < 0.1
        weight = rng.standard_normal((768, 768)) * np.kron(live, np.ones((block, block)))
        op = LinearOp(
            "layer", BlockSparseMatrix.from_dense(weight.astype(np.float32), (block, block))
        )
        choice = plan(op, 128, dtype, context)
        form = choice.weight
        chosen[f"{block}x{block}"] = (
            "{}x{}".format(*form.block) if isinstance(form, BlockSparseMatrix) else "dense"
        )
    return chosen


def line(target: str, row: dict[str, Any]) -> str:
    """One row of the table."""
    errors = ", ".join(f"{d} {e:.0e}" for d, e in row.get("errors", {}).items())
    ran = ", ".join(row.get("models", {}))
    a, b = (row["blocks"][size] for size in ("16x16", "8x8"))
    cells = (row["on"], errors or "-", ran or "-", against_dense(target) or "-", a, b)
    return f"| `{target}` | {' | '.join(cells)} |"


def against_dense(target: str) -> str:
    """Ratio to the target's own dense kernel by dtype, and what was measured."""
    known = json.loads(RATIOS.read_text()).get(target) if RATIOS.exists() else None
    if known is None:
        return ""
    pairs = {dtype: blocks["16"] for dtype, blocks in known["seconds"].items()}
    told = ", ".join(f"{dtype} {dense / sparse:.1f}" for dtype, (dense, sparse) in pairs.items())
    unit = next(u for u in ("packets", "instructions", "cycles", "time") if u in known["counts"])
    return f"{told} ({unit})"


def write_page(rows: dict[str, Any]) -> None:
    """Replace what stands between the marks on the page."""
    head = (
        "| target | executed on | max error, by dtype of the weights | models "
        "| dense / 10 % of 16x16 blocks | 16x16-trained runs as | 8x8-trained runs as |\n"
        "|---|---|---|---|---|---|---|"
    )
    table = "\n".join([MARKS[0], head, *(line(t, rows[t]) for t in sorted(rows)), MARKS[1]])
    text = PAGE.read_text()
    first, last = (text.find(mark) for mark in MARKS)
    if first < 0:
        text = text.rstrip("\n") + "\n\n## What was executed\n" + table + "\n"
    else:
        text = text[:first] + table + text[last + len(MARKS[1]) :]
    PAGE.write_text(text)


if __name__ == "__main__":
    sys.exit(main())

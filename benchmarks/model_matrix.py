"""The models that the road carries: equal to onnxruntime, declined with a reason, or wrong.

Run: python -m benchmarks.model_matrix [--full] [FAMILY ...]. Families x exporters x static and
dynamic shapes x weights (dense, four block shapes, merged Kronecker, factorized). ``--full`` takes
the published sizes instead of small ones. Exits with 1 if any cell is wrong.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

import bscompile
from bscompile.errors import BscompileError
from bscompile.models import factorize
from tests.end_to_end import families
from tests.end_to_end.families import FAMILIES, export, with_weights

WEIGHTS = {
    **families.WEIGHTS,
    "factorized": None,
}
TOLERANCE = 1e-4  # of the largest output; fp32 sums of thousands of terms through tens of layers


def relative_error(path: Path, feeds_list: list[dict[str, np.ndarray]], folder: Path) -> float:
    """Build, run, compare: the largest error over the largest output."""
    artifact = bscompile.build(path, target="cpu").save(folder / "model.bsc")
    model = bscompile.load(artifact)
    peer = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for feeds in feeds_list:
        for want, got in zip(peer.run(None, feeds), model.run(feeds).values(), strict=True):
            worst = max(worst, float(np.abs(want - got).max() / max(np.abs(want).max(), 1e-9)))
    return worst


def cell(path: Path, weights: str, feeds: list[dict[str, np.ndarray]], folder: Path) -> str:
    """What became of one model, in a few words."""
    change = WEIGHTS[weights]
    if change is not None:
        onnx.save(with_weights(onnx.load(path), change), folder / "changed.onnx")
        path = folder / "changed.onnx"
    begun = time.perf_counter()
    try:
        error = relative_error(path, feeds, folder)
    except BscompileError as reason:
        return f"declined: {reason}"
    verdict = "equal" if error <= TOLERANCE else "WRONG"
    return f"{verdict} {error:.1e}  {time.perf_counter() - begun:.1f} s"


def rows(names: list[str], full: bool, folder: Path) -> Iterator[tuple[str, str]]:
    """(what, outcome) for every model of the table."""
    for family, dynamic, dynamo in product(names, (False, True), (True, False)):
        spec = FAMILIES[family]
        batches = (1, 2, 5) if dynamic else (2,)
        feeds = [{k: v.numpy() for k, v in spec.inputs(full, batch).items()} for batch in batches]
        name = f"{family:7s} {'dynamic' if dynamic else 'static':7s} "
        name += "dynamo" if dynamo else "legacy"
        options = {"full": full, "dynamic": dynamic, "dynamo": dynamo}
        for form in ("merged", "factorized"):
            change = _factorized if form == "factorized" else _unchanged
            try:
                path = export(spec, folder / f"{form}.onnx", change=change, **options)
            except Exception as error:  # torch's own limits are part of the table
                yield f"{name} {form:10s}", f"torch does not export it: {type(error).__name__}"
                continue
            for weights in WEIGHTS:
                if (weights == "factorized") == (form == "factorized"):
                    yield f"{name} {weights:10s}", cell(path, weights, feeds, folder)


def main() -> int:
    full = "--full" in sys.argv
    names = [a for a in sys.argv[1:] if not a.startswith("--")] or list(FAMILIES)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for what, outcome in rows(names, full, Path(folder)):
            print(what, outcome, flush=True)
            wrong += outcome.startswith("WRONG")
    return int(bool(wrong))


def _factorized(module):
    return factorize(module, block=(8, 8), rank=2)


def _unchanged(module):
    return module


if __name__ == "__main__":
    sys.exit(main())

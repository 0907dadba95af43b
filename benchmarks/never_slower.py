"""Never slower: each model and kind of weights against our own dense form and onnxruntime.

Run: python -m benchmarks.never_slower [MODEL ...]. Two threads, fp32, full sizes, everybody in a
process of their own, in turns, medians of back-to-back calls. «worst» is the better of the two
others over ours; below one a user would have been better off without us.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnx

import bscompile
from benchmarks.peers.engines import compare
from tests.end_to_end.families import FAMILIES, export, with_weights, zero_blocks
from tests.end_to_end.wider import WIDER

THREADS = 2
MODELS = {name: f for name, f in {**FAMILIES, **WIDER}.items() if name != "bert"}
KINDS = {
    "dense": None,
    "16x16 10%": ((16, 16), 0.1),
    "16x16 70%": ((16, 16), 0.7),
    "4x4 50%": ((4, 4), 0.5),
}
BATCHES = (1, 8)


def main() -> int:
    wanted = sys.argv[1:] or list(MODELS)
    if unknown := [name for name in wanted if name not in MODELS]:
        print(f"no model {unknown[0]}; there are {', '.join(MODELS)}", file=sys.stderr)
        return 2
    worst: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        for name in wanted:
            for batch in BATCHES:
                worst += rows(name, batch, folder)
    worst.sort()
    print(f"worst of {len(worst)}: " + ", ".join(f"{label} {r:.2f}" for r, label in worst[:5]))
    print(f"at least 0.98: {sum(r >= 0.98 for r, _ in worst)} of {len(worst)}")
    return 0


def rows(name: str, batch: int, folder: Path) -> list[tuple[float, str]]:
    """One line for each kind of weights; (worst ratio, label)."""
    family = MODELS[name]
    source = onnx.load(export(family, folder / "source.onnx", full=True, batch=batch))
    feeds = {key: value.numpy() for key, value in family.inputs(True, batch).items()}
    dense = folder / "dense.bsc"
    bscompile.build(folder / "source.onnx", threads=THREADS, output=dense)
    found = []
    for kind, pattern in KINDS.items():
        path, ours = folder / "model.onnx", folder / "ours.bsc"
        change = (lambda w: w) if pattern is None else zero_blocks(*pattern)
        onnx.save(with_weights(source, change), path)
        bscompile.build(path, threads=THREADS, output=ours)
        engines = {"ours": ("bscompile", ours), "onnxruntime": ("onnxruntime", path)}
        if pattern is not None:
            engines["our dense"] = ("bscompile", dense)
        times, _, errors = compare(engines, feeds, THREADS, seconds=1.5)
        own = times["ours"].median
        others = {label: t.median for label, t in times.items() if label != "ours"}
        ratio = min(others.values()) / own
        label = f"{name} batch {batch} {kind}"
        cells = "  ".join(f"{label} {seconds * 1e3:8.3f}" for label, seconds in others.items())
        print(f"{label:28} ours {own * 1e3:8.3f} ms  {cells}  worst {ratio:5.2f}"
              f"  error {errors['ours']:.0e}", flush=True)  # fmt: skip
        found.append((ratio, label))
    return found


if __name__ == "__main__":
    sys.exit(main())

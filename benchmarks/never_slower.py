"""Never slower: each model and kind of weights against our own dense form and onnxruntime.

Run: python -m benchmarks.never_slower [--dtype DTYPE] [--batch N] [--kind KIND]
     [--folder DIR [--build]] [MODEL ...].
Two threads, full sizes, everybody in a process of their own, in turns of back-to-back calls.
«worst» is the best of the others over ours, the median over the turns; below one a user would
have been better off without us. Kinds of weights that leave a model as it is, since it has no
linear layers, are left out. With ``--dtype`` bf16, fp16 or int8 our float32 form is one of the
others, too, while onnxruntime stays in float32. ``--folder`` keeps what was built there and takes
what is there; ``--build`` measures nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

import bscompile
from benchmarks.peers.engines import compare
from benchmarks.recurrent import RECURRENT
from tests.end_to_end.families import FAMILIES, export, with_weights, zero_blocks
from tests.end_to_end.wider import WIDER

THREADS = 2
DYNAMIC = "llama-dynamic"  # the same Llama, batch and sequence symbolic
MODELS = {**FAMILIES, **WIDER, **RECURRENT, DYNAMIC: FAMILIES["llama"]}
KINDS = {
    "dense": None,
    "16x16 10%": ((16, 16), 0.1),
    "16x16 70%": ((16, 16), 0.7),
    "4x4 50%": ((4, 4), 0.5),
}
BATCHES = (1, 8)
FLOAT32 = "float32"
SECONDS = 1.5  # of turns, five at the least


def main() -> int:
    """Print a row for each model, batch and kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--dtype", default=FLOAT32, choices=(FLOAT32, "bf16", "fp16", "int8"))
    parser.add_argument("--batch", type=int, choices=BATCHES, help="only this one")
    parser.add_argument("--kind", choices=tuple(KINDS), help="only this kind of weights")
    parser.add_argument("--folder", type=Path, help="keep what is built here, take what is there")
    parser.add_argument("--build", action="store_true", help="build into --folder, measure nothing")
    options = parser.parse_args()
    wanted = options.models or list(MODELS)
    if unknown := [name for name in wanted if name not in MODELS]:
        parser.error(f"no model {unknown[0]}; there are {', '.join(MODELS)}")
    if options.build and options.folder is None:
        parser.error("--build: name the folder with --folder")
    worst: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as home:
        folder: Path = options.folder or Path(home)
        folder.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            for batch in (options.batch,) if options.batch else BATCHES:
                for kind in (options.kind,) if options.kind else KINDS:
                    worst += row(name, batch, kind, options.dtype, folder, options.build)
    if worst:
        worst.sort()
        print(f"worst of {len(worst)}: " + ", ".join(f"{label} {r:.2f}" for r, label in worst[:5]))
        print(f"at least 0.98: {sum(r >= 0.98 for r, _ in worst)} of {len(worst)}")
    return 0


def row(
    name: str, batch: int, kind: str, dtype: str, folder: Path, only_build: bool
) -> list[tuple[float, str]]:
    """One line; (worst ratio, label), or nothing where there is no such model or no time."""
    path = place(folder, name, batch, kind)
    if not built(name, batch, kind, dtype, path) or only_build:
        return []
    engines = {
        "ours": ("bscompile", artifact(path, dtype)),
        "onnxruntime": ("onnxruntime", path),
    }
    if KINDS[kind] is not None:
        dense = place(folder, name, batch, "dense")
        built(name, batch, "dense", dtype, dense)
        engines["our dense"] = ("bscompile", artifact(dense, dtype))
    if dtype != FLOAT32 and built(name, batch, kind, FLOAT32, path):
        engines["our float32"] = ("bscompile", artifact(path, FLOAT32))
    feeds = {key: value.numpy() for key, value in MODELS[name].inputs(True, batch).items()}
    times, _, errors = compare(engines, feeds, THREADS, SECONDS)
    others = {label: t for label, t in times.items() if label != "ours"}
    ratio = min(t.ratio_to(times["ours"]) for t in others.values())
    label = f"{name} batch {batch} {kind}" + (f" {dtype}" if dtype != FLOAT32 else "")
    cells = "  ".join(f"{label} {t.median * 1e3:8.3f}" for label, t in others.items())
    print(f"{label:31} ours {times['ours'].median * 1e3:8.3f} ms  {cells}  worst {ratio:5.2f}"
          f"  error {errors['ours']:.0e}", flush=True)  # fmt: skip
    return [(ratio, label)]


def place(folder: Path, name: str, batch: int, kind: str) -> Path:
    """Where a model is kept."""
    return folder / f"{name}-{batch}-{kind.replace(' ', '-').rstrip('%')}.onnx"


def artifact(path: Path, dtype: str) -> Path:
    """Where the artifact of a model in a dtype is."""
    return path.with_suffix(f".{dtype}.bsc")


def built(name: str, batch: int, kind: str, dtype: str, path: Path) -> bool:
    """Whether there is such a model; it and its artifact are at ``path`` and beside it then."""
    source, none = path.with_name(f"{name}-{batch}.onnx"), path.with_suffix(".none")
    if artifact(path, dtype).exists() or none.exists():
        return not none.exists()
    if not source.exists():
        # The newer exporter writes an RNN as its steps, and the others' weights as computed ones.
        dynamo = name not in RECURRENT
        export(MODELS[name], source, full=True, batch=batch, dynamic=name == DYNAMIC, dynamo=dynamo)
    model = onnx.load(source)
    pattern = KINDS[kind]
    changed: list[np.ndarray] = []

    def change(weight: np.ndarray) -> np.ndarray:
        changed.append(weight)
        return weight if pattern is None else zero_blocks(*pattern)(weight)

    onnx.save(with_weights(model, change), path)
    if pattern is not None and not changed:
        none.touch()
        return False
    bscompile.build(path, threads=THREADS, dtype=dtype, output=artifact(path, dtype))
    return True


if __name__ == "__main__":
    sys.exit(main())

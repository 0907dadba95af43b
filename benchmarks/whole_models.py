"""Whole encoders against onnxruntime: dense, 10 % of the blocks live, and factorized.

Run: python -m benchmarks.whole_models [bert] [vit] [swin] [mlp]. Two threads on both sides, fp32,
batch 1, the same ONNX graph; onnxruntime always runs the dense arithmetic, zeros included. Medians
of interleaved calls.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

import bscompile
from bscompile.benchmark import Latency, take_turns
from tests.end_to_end.families import (
    FAMILIES,
    export,
    merged_kronecker,
    with_weights,
    zero_blocks,
)

THREADS = 2
WEIGHTS = {
    "dense": lambda w: w,
    "16x16 10 %": zero_blocks((16, 16), 0.1),
    "8x8 10 %": zero_blocks((8, 8), 0.1),
    "kron 8x8 r1 10 %": merged_kronecker((8, 8), 1, 0.1),
}


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def milliseconds(timing: Latency) -> str:
    return f"{timing.median * 1e3:7.2f} ms (min {timing.minimum * 1e3:.2f})"


def compare(family: str, folder: Path) -> None:
    spec = FAMILIES[family]
    source = onnx.load(export(spec, folder / f"{family}.onnx", full=True, batch=1))
    feeds = {k: v.numpy() for k, v in spec.inputs(True, 1).items()}
    for label, change in WEIGHTS.items():
        path = folder / "changed.onnx"
        onnx.save(with_weights(source, change), path)
        start = time.perf_counter()
        compiled = bscompile.build(path, target="cpu", threads=THREADS)
        built = time.perf_counter() - start
        compiled.save(folder / "model.bsc")
        model = bscompile.load(folder / "model.bsc")
        peer = session(path)
        want, got = peer.run(None, feeds)[0], next(iter(model.run(feeds).values()))
        error = float(np.abs(want - got).max() / np.abs(want).max())
        times = take_turns(
            {"ours": lambda m=model: m.run(feeds), "ort": lambda p=peer: p.run(None, feeds)},
            seconds=5.0,
        )
        ours, theirs = times["ours"], times["ort"]
        size = (folder / "model.bsc").stat().st_size / 1e6
        print(
            f"{family:5s} {label:17s} ours {milliseconds(ours)}  ort {milliseconds(theirs)}"
            f"  {theirs.median / ours.median:5.2f}x  error {error:.1e}"
            f"  build {built:5.1f} s  artifact {size:6.1f} MB of {path.stat().st_size / 1e6:.1f}",
            flush=True,
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for family in sys.argv[1:] or ["mlp", "vit", "bert", "swin"]:
            compare(family, Path(folder))


if __name__ == "__main__":
    main()

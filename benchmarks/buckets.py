"""What do symbolic rows cost? One artifact for any batch against one for each.

Run: python -m benchmarks.buckets [BLOCK DENSITY]. A feed-forward network 768 -> 3072 -> 768, 16x16
blocks, a tenth of them live by default; two threads, fp32, everybody in a process of their own, in
turns, medians. «static» was built for just that batch (``--dim``); «buckets» for any, with a
kernel for each bucket and a branch between them; «one» for any with the typical 128 rows' kernel
(``--buckets none``). Cost is buckets over static: what branches and rounding to a bucket take.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

import bscompile
from benchmarks.peers.engines import compare
from tests.passes.helpers import blocky, dense, model_from

THREADS = 2
OURS = ("static", "buckets", "one")
ROWS = (1, 4, 8, 32, 100, 128, 512, 1024)
TEXT = """g (float[batch, 768] x) => (float[batch, 768] y) {
    a = MatMul(x, w1)  h = Add(a, b1)  r = Relu(h)  z = MatMul(r, w2)  y = Add(z, b2)
}"""


def main() -> int:
    side, density = (int(sys.argv[1]), float(sys.argv[2])) if len(sys.argv) > 2 else (16, 0.1)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        model = folder / "model.onnx"
        weights = {
            "w1": blocky((768, 3072), (side, side), density),
            "b1": dense(3072),
            "w2": blocky((3072, 768), (side, side), density, seed=1),
            "b2": dense(768),
        }
        onnx.save(model_from(TEXT, weights), model)
        for name, buckets in (("buckets", None), ("one", ())):
            bscompile.build(model, threads=THREADS, buckets=buckets, output=folder / f"{name}.bsc")
        print(f"768->3072->768, {side}x{side} blocks, {density:.0%} live, {THREADS} threads")
        print(f"{'rows':>5} {'static':>10} {'buckets':>10} {'one':>10} onnxruntime     cost")
        for rows in ROWS:
            row(model, folder, rows)
    return 0


def row(model: Path, folder: Path, rows: int) -> None:
    static = folder / "static.bsc"
    bscompile.build(model, threads=THREADS, dimensions={"batch": rows}, output=static)
    engines = {name: ("bscompile", folder / f"{name}.bsc") for name in OURS}
    engines["onnxruntime"] = ("onnxruntime", model)
    feeds = {"x": np.random.default_rng(0).standard_normal((rows, 768)).astype(np.float32)}
    times, _, errors = compare(engines, feeds, THREADS, seconds=1.0)
    assert max(errors.values()) < 1e-4, errors
    took = {name: time.median * 1e3 for name, time in times.items()}
    cells = " ".join(f"{took[name]:10.4f}" for name in engines)
    print(f"{rows:5} {cells} ms  {took['buckets'] / took['static']:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

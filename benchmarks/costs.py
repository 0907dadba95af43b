"""What using the compiler costs: build time and memory, artifact size, load time, call overhead.

Run: python -m benchmarks.costs. Bars of the project: a BERT-base-sized model (340 MB) builds under
90 s and under 3 times its size in memory; the artifact holds at most 1.2 times the bytes of live
weights; it loads under 1 s; a call on a tiny model costs under 50 us; ``bscompile --help`` answers
under 0.3 s. Every command runs as a process of its own, as a user would start it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from tests.end_to_end.families import FAMILIES, export, with_weights, zero_blocks

LOAD = """
import sys, time
begun = time.perf_counter()
import bscompile
imported = time.perf_counter()
model = bscompile.load(sys.argv[1])
print(imported - begun, time.perf_counter() - imported)
"""
CALLS = """
import sys, time, numpy as np, bscompile
model = bscompile.load(sys.argv[1], threads=1)
x = np.ones((1, 16), np.float32)
best = []
for _ in range(200):
    begun = time.perf_counter()
    for _ in range(20):
        model.run({"x": x})
    best.append((time.perf_counter() - begun) / 20)
print(np.median(best))
"""


#: Peak memory is told through a small process of its own: a child is charged with the memory of
#: the process that started it, and this one holds whole models.
LAUNCH = """
import resource, subprocess, sys, time
begun = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
seconds = time.perf_counter() - begun
if done.returncode:
    sys.exit(done.stderr)
print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def bscompile(*arguments: object) -> tuple[float, float]:
    """Run the command; return its seconds and peak resident bytes."""
    seconds, peak = python(LAUNCH, sys.executable, "-m", "bscompile", *arguments)
    return seconds, peak


def python(code: str, *arguments: object) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


def live_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the weights that are in live 16x16 blocks, and of all others as they are."""
    total = 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        total += int(np.count_nonzero(array)) * array.itemsize if array.ndim == 2 else array.nbytes
    return total


def line(what: str, value: float, unit: str, bar: float) -> None:
    verdict = "ok" if value <= bar else "OVER"
    print(f"{what:44s} {value:9.3f} {unit:4s} (bar {bar:g})  {verdict}", flush=True)


def main() -> None:
    _, idle = bscompile("--help")
    line("bscompile --help", min(bscompile("--help")[0] for _ in range(5)), "s", 0.3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = folder / "tiny.onnx"
        save_tiny_model(tiny)
        bscompile("build", tiny, "-o", folder / "tiny.bsc")
        line("one call of a tiny model", python(CALLS, folder / "tiny.bsc")[0] * 1e6, "us", 50)
        path = export(FAMILIES["bert"], folder / "bert.onnx", full=True, batch=1)
        for label, change in {"dense": lambda w: w, "10 %": zero_blocks((16, 16), 0.1)}.items():
            model = with_weights(onnx.load(path), change)
            onnx.save(model, folder / "changed.onnx")
            size = (folder / "changed.onnx").stat().st_size
            seconds, peak = bscompile("build", folder / "changed.onnx", "-o", folder / "m.bsc")
            artifact = (folder / "m.bsc").stat().st_size
            imported, loaded = python(LOAD, folder / "m.bsc")
            print(
                f"BERT-base {label}: {size / 1e6:.0f} MB of ONNX, idle process {idle / 1e6:.0f} MB"
            )
            line(f"  build, {label}", seconds, "s", 90)
            line(f"  peak memory / model size, {label}", peak / size, "x", 3)
            line(f"  artifact / live weights, {label}", artifact / live_bytes(model), "x", 1.2)
            line(f"  load (import {imported:.2f} s), {label}", loaded, "s", 1)


def save_tiny_model(path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[1,16] x) => (float[1,8] y) '
    text += "{ h = MatMul(x, w) y = Relu(h) }"
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)


if __name__ == "__main__":
    main()

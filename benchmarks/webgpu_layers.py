"""Layers for WebGPU against the same target's own dense kernel, by the device's clock.

Run: python -m benchmarks.webgpu_layers. One layer 768 -> 768 for each row of the table, dense and
with 10 % of its blocks live; the two take turns, medians of 9. Where the adapter is a driver for
the CPU the ratio says how much work is left, not how fast a GPU is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

import bscompile
from bscompile.devices import webgpu as webgpu_device
from bscompile.errors import TargetError

SIDE, DENSITY, TURNS = 768, 0.1, 9
CASES = [(rows, block) for rows in (1, 128) for block in ((8, 8), (16, 16), (32, 32))]


def load_layer(rows: int, weight: np.ndarray, folder: Path) -> bscompile.Model:
    """A layer y = x Wᵀ, built for WebGPU and loaded."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> layer (float[{rows}, {SIDE}] x) '
        f"=> (float[{rows}, {SIDE}] y) {{ y = MatMul(x, w) }}"
    )
    proto.graph.initializer.append(
        numpy_helper.from_array(np.ascontiguousarray(weight.T, np.float32), "w")
    )
    return bscompile.load(bscompile.build(proto, target="webgpu").save(folder / "layer.bsc"))


def main() -> int:
    try:
        name = webgpu_device.name_of(webgpu_device.find())
    except TargetError as error:
        print(f"left out: {error}")
        return 0
    rng = np.random.default_rng(0)
    print(f"{name}\n{'rows':>5} {'block':>7} {'form':>13} {'dense ms':>9} {'ms':>8} {'ratio':>6}")
    for rows, (bh, bw) in CASES:
        live = rng.random((SIDE // bh, SIDE // bw)) < DENSITY
        weight = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
        x = {"x": rng.standard_normal((rows, SIDE)).astype(np.float32)}
        with tempfile.TemporaryDirectory() as folder:
            dense = load_layer(rows, weight, Path(folder))
            sparse = load_layer(rows, weight * np.kron(live, np.ones((bh, bw))), Path(folder))
        times: dict[str, list[float]] = {"dense": [], "sparse": []}
        for _ in range(TURNS):
            for kind, model in (("dense", dense), ("sparse", sparse)):
                times[kind].append(sum(seconds for _, seconds in model.profile(x, 1)))
        before, after = (1e3 * float(np.median(values)) for values in times.values())
        shape, form = f"{bh}x{bw}", form_of(sparse)
        print(f"{rows:5} {shape:>7} {form:>13} {before:9.3f} {after:8.3f} {before / after:6.1f}")
        dense.close()
        sparse.close()
    return 0


def form_of(model: bscompile.Model) -> str:
    """What the layer runs as."""
    from bscompile.artifact import REPORT
    from bscompile.report import Report

    (layer,) = Report.from_json(model.members[REPORT]).layers
    return f"{layer.form[:6]} {'x'.join(map(str, layer.block or ()))}"


if __name__ == "__main__":
    sys.exit(main())

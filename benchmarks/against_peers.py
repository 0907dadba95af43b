"""Against every engine that runs here: DeepSparse, OpenVINO, onnxruntime, torch.

Run: python -m benchmarks.against_peers [ffn] [factors] [models | vit bert swin] [--quick]. Two
threads, fp32 (and OpenVINO's bf16 in a column of its own, for whole models beside our bf16), every
engine in its own process and environment (made by pip under .peers/ on the first run), in turns,
medians of back-to-back calls; the same ONNX file for all. «x» is the peer's median over ours,
«bf16 x» over our bf16; below one we lose.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import bscompile
from benchmarks.peers.engines import compare
from tests.end_to_end.families import FAMILIES, export, merged_kronecker, with_weights, zero_blocks

THREADS, ROWS, INNER, OUTER = 2, 128, 768, 3072
PEERS = ("deepsparse", "openvino", "openvino-bf16", "onnxruntime")


def row(label, source, feeds, peers, folder, seconds, dense=None, bf16=False):
    """Build, time and print one model; ``bf16`` adds our build with bf16 weights."""
    ours = folder / "ours.bsc"
    bscompile.build(source, threads=THREADS, output=ours)
    engines = {"ours": ("bscompile", ours), **{name: (name, source) for name in peers}}
    if dense is not None:
        own = folder / "dense.bsc"
        bscompile.build(dense, threads=THREADS, output=own)
        engines["our dense"] = ("bscompile", own)
    if bf16:
        narrow = folder / "bf16.bsc"
        bscompile.build(source, threads=THREADS, dtype="bf16", output=narrow)
        engines["our bf16"] = ("bscompile", narrow)
    times, refused, errors = compare(engines, feeds, THREADS, seconds)
    own = times["ours"]
    cells = [f"{label:24} ours {own.median * 1e3:8.3f} ms (min {own.minimum * 1e3:.3f})"]
    for name in engines:
        if name == "ours":
            continue
        if name in refused:
            cells.append(f"{name}: refused ({refused[name]})")
        else:
            taken = times[name].median
            cells.append(f"{name} {taken * 1e3:.3f} ms {taken / own.median:.2f}x")
            if bf16 and name == "openvino-bf16":
                cells[-1] += f" (bf16 {taken / times['our bf16'].median:.2f}x)"
    print("  | ".join(cells), f" | error {errors['ours']:.0e}", flush=True)


def ffn(folder, seconds):
    """Issue: at least 1.7 times DeepSparse on each row."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, INNER)).astype(np.float32)
    shapes = ((OUTER, INNER), (INNER, OUTER))
    dense = [(rng.standard_normal(s) * 0.03).astype(np.float32) for s in shapes]
    plain = save_pair(dense, 1, folder / "dense.onnx")
    row("dense", plain, {"x": x}, (*PEERS, "torch"), folder, seconds)
    for side in (4, 8, 16, 32):
        for density in (0.05, 0.1, 0.2, 0.5):
            change = zero_blocks((side, side), density)
            path = save_pair([change(w) for w in dense], side, folder / "sparse.onnx")
            label = f"{side}x{side} {density:.0%}"
            row(label, path, {"x": x}, (*PEERS, "torch-bsr"), folder, seconds, plain)


def factors(folder, seconds):
    """Issue: at least 7 times DeepSparse at b=8, r=1; it runs the merged weight."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, INNER)).astype(np.float32)
    for side, rank in ((8, 1), (8, 4), (16, 2)):
        change = merged_kronecker((side, side), rank, 0.1)
        shapes = ((OUTER, INNER), (INNER, OUTER))
        pair = [change(rng.standard_normal(s) * 0.03).astype(np.float32) for s in shapes]
        path = save_pair(pair, side, folder / "factors.onnx")
        label = f"factors {side}x{side} r={rank} 10%"
        row(label, path, {"x": x}, (*PEERS, "torch-bsr"), folder, seconds)


def models(folder, seconds, families=("vit", "bert", "swin")):
    """Issue: 2 times DeepSparse at 10 %, 2 times OpenVINO bf16 in bf16; dense 0.95 of the best."""
    kinds = {
        "dense": lambda w: w,
        "16x16 10%": zero_blocks((16, 16), 0.1),
        "8x8 10%": zero_blocks((8, 8), 0.1),
        "kron 8x8 r1 10%": merged_kronecker((8, 8), 1, 0.1),
    }
    for family in families:
        spec = FAMILIES[family]
        # DeepSparse reads the legacy exporter's opset 17, not the newer ones.
        path = export(spec, folder / f"{family}.onnx", full=True, batch=1, dynamo=False)
        source = onnx.load(path)
        feeds = {k: v.numpy() for k, v in spec.inputs(True, 1).items()}
        for label, change in kinds.items():
            changed = folder / "changed.onnx"
            onnx.save(with_weights(source, change), changed)
            row(f"{family} {label}", changed, feeds, PEERS, folder, seconds, bf16=True)


def save_pair(weights, side, path):
    """X -> relu(x A^T) B^T as ONNX, and the weights beside it for torch."""
    value = helper.make_tensor_value_info
    first, second = weights
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "second"], ["y"]),
        ],
        "ffn",
        [value("x", 1, [ROWS, INNER])],
        [value("y", 1, [ROWS, INNER])],
        [
            numpy_helper.from_array(np.ascontiguousarray(first.T), "first"),
            numpy_helper.from_array(np.ascontiguousarray(second.T), "second"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    np.savez(path.with_suffix(".npz"), first=first, second=second, side=side)
    return path


PARTS = {
    "ffn": ffn,
    "factors": factors,
    "models": models,
    **{name: partial(models, families=(name,)) for name in ("vit", "bert", "swin")},
}


def main() -> int:
    words = sys.argv[1:]
    seconds = 1.0 if "--quick" in words else 4.0
    wanted = [word for word in words if word != "--quick"] or ["ffn", "factors", "models"]
    if unknown := [word for word in wanted if word not in PARTS]:
        print(f"no part {unknown[0]}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        for part in wanted:
            print(f"--- {part}: {getattr(PARTS[part], 'func', PARTS[part]).__doc__}")
            PARTS[part](Path(folder), seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())

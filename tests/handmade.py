"""Small artifacts made with TVM alone, so that artifact and runtime are tested by themselves."""

from __future__ import annotations

import platform
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from bscompile.artifact import Manifest, ParamSpec, TensorSpec, write_artifact

REPORT = (
    '{"hardware": "none", "isa": "none", "threads": 1, "layers": [], "notes": [], "totals": {}}'
)


def weight(name, shape):
    """The same values in every process."""
    rng = np.random.default_rng(len(name) + sum(shape))
    return rng.standard_normal(shape, np.float32)


@cache
def affine_code() -> bytes:
    """main(x [n, 8], w [8, 4], b [4]) -> (relu(x w + b) [n, 4], x w [n, 4], x, w)."""
    import tvm
    from tvm import relax

    n = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, 8), "float32"))
    w = relax.Var("w", relax.TensorType((8, 4), "float32"))
    b = relax.Var("b", relax.TensorType((4,), "float32"))
    bb = relax.BlockBuilder()
    with bb.function("main", [x, w, b]):
        with bb.dataflow():
            product = bb.emit(relax.op.matmul(x, w))
            y = bb.emit(relax.op.nn.relu(relax.op.add(product, b)))
            result = bb.emit_output(relax.Tuple([y, product, x, w]))
        bb.emit_func_output(result)
    return _library(bb)


@cache
def four_only_code() -> bytes:
    """main(x [n]) -> relu(x), for n = 4 alone, which only the code itself knows."""
    import tvm
    from tvm import relax

    x = relax.Var("x", relax.TensorType((tvm.tirx.Var("n", "int64"),), "float32"))
    bb = relax.BlockBuilder()
    with bb.function("main", [x]):
        four = bb.match_cast(x, relax.TensorType((4,), "float32"))
        bb.emit_func_output(bb.emit(relax.op.nn.relu(four)))
    return _library(bb)


def _library(builder) -> bytes:
    import tvm

    built = tvm.compile(builder.get(), target=tvm.target.Target({"kind": "llvm"}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        built.export_library(str(path))
        return path.read_bytes()


def affine_manifest(**changes) -> Manifest:
    fields = {
        "target": "cpu",
        "isa": "generic",
        "features": (),
        "threads": 2,
        "inputs": (TensorSpec("x", ("n", 8), "float32"),),
        "outputs": (
            TensorSpec("y", ("n", 4), "float32"),
            TensorSpec("product", ("n", 4), "float32"),
            TensorSpec("same_x", ("n", 8), "float32"),
            TensorSpec("same_w", (8, 4), "float32"),
        ),
        "params": (
            ParamSpec("w", (8, 4), "float16", "float32"),
            ParamSpec("b", (4,), "float32", "float32"),
        ),
        "machine": platform.machine(),
    }
    return Manifest(**{**fields, **changes})


def affine_weights():
    return {"w": weight("w", (8, 4)).astype(np.float16), "b": weight("b", (4,))}


def affine_reference(x):
    """The float64 outputs, name -> array."""
    weights = affine_weights()
    product = x.astype(np.float64) @ weights["w"].astype(np.float64)
    return {"y": np.maximum(product + weights["b"], 0), "product": product}


def write_affine(path: Path, **changes) -> Path:
    manifest = affine_manifest(**changes)
    return write_artifact(
        path, manifest, {"code/model.so": affine_code()}, affine_weights(), REPORT
    )

"""Whole models, through artifact, runtime and TVM's CUDA runtime, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import bscompile
from bscompile.compiler import CompileOptions, compile_model
from bscompile.errors import TargetError
from bscompile.runtime import cuda as runtime
from tests.targets.cuda.conftest import block_sparse

PERCEPTRON = """<ir_version: 9, opset_import: ["" : 17]>
perceptron (float[n, 48] x) => (float[n, 32] y) {
  a = MatMul(x, w1)
  b = Add(a, b1)
  c = Relu(b)
  d = MatMul(c, w2)
  y = Softmax<axis: int = -1>(d)
}"""
BLOCK = """<ir_version: 9, opset_import: ["" : 20]>
block (float[b, 7, 48] x) => (float[b, 7, 48] y) {
  n = LayerNormalization<axis: int = -1>(x, scale, shift)
  q = MatMul(n, wq)
  k = MatMul(n, wk)
  v = MatMul(n, wv)
  kt = Transpose<perm: ints = [0, 2, 1]>(k)
  s = MatMul(q, kt)
  p = Softmax<axis: int = -1>(s)
  o = MatMul(p, v)
  r = Add(x, o)
  u = MatMul(r, w1)
  ub = Add(u, b1)
  g = Gelu(ub)
  f = MatMul(g, w2)
  y = Add(f, r)
}"""


def model(text, rng, shapes):
    """The model with block-sparse matrices, written [in, out] as MatMul wants them."""
    proto = onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        if len(shape) == 2:
            value = block_sparse(rng, shape[::-1], (8, 8), 0.4).to_dense().T
        else:
            value = rng.standard_normal(shape)
        array = np.ascontiguousarray(value, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


MODELS = {
    "perceptron": (PERCEPTRON, {"w1": (48, 64), "b1": (64,), "w2": (64, 32)}, (37, 48)),
    "block": (
        BLOCK,
        {
            "scale": (48,),
            "shift": (48,),
            "wq": (48, 48),
            "wk": (48, 48),
            "wv": (48, 48),
            "w1": (48, 96),
            "b1": (96,),
            "w2": (96, 48),
        },
        (2, 7, 48),
    ),
}


@pytest.mark.usefixtures("on_emulator")
@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [
        ("perceptron", "bfloat16", 2e-2),
        ("block", "float32", 1e-5),
        ("block", "float16", 1e-2),
    ],
)
def test_a_model_equals_onnxruntime(name, precision, tolerance, rng, tmp_path):
    text, shapes, x_shape = MODELS[name]
    proto = model(text, rng, shapes)
    x = rng.standard_normal(x_shape).astype(np.float32)
    want = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    options = CompileOptions(target="cuda:sm_90", precision=precision)
    path = compile_model(proto, options).save(tmp_path / "model.bsc")
    with bscompile.load(path) as loaded:
        got = loaded.run({"x": x})["y"]
        again = loaded.run({"x": x[:1]})["y"]
        timed = loaded.profile({"x": x}, repeats=1)
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()
    assert len(timed) >= 3
    assert any("attention" in kernel for kernel, _ in timed) == (name == "block")
    assert np.abs(again - want[:1]).max() <= tolerance * np.abs(want).max()


@pytest.mark.usefixtures("on_emulator")
def test_code_for_newer_gpus_only_is_refused_in_a_line(rng, tmp_path):
    proto = model(PERCEPTRON, rng, MODELS["perceptron"][1])
    compiled = compile_model(proto, CompileOptions(target="cuda:sm_120+sm_100"))
    with pytest.raises(TargetError, match="built for sm_120 and sm_100, and the GPU here is sm_90"):
        bscompile.load(compiled.save(tmp_path / "model.bsc"))


def test_a_driver_that_is_too_old_is_refused_in_a_line(monkeypatch):
    class Driver:
        def cuDriverGetVersion(self, version):  # noqa: N802
            version._obj.value = 12040

    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda *_: Driver())
    with pytest.raises(TargetError, match=r"for CUDA 12\.4, and TVM's runtime needs 13\.0"):
        runtime._load_driver()

"""Whole models in bfloat16, float16 and int8: through build, run, verify and inspect."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bscompile
from bscompile.api import build
from bscompile.devices.cpu import cpu_features
from bscompile.errors import UsageError
from bscompile.report.tables import form
from bscompile.verification import verify
from tests.end_to_end.families import FAMILIES, export, with_weights
from tests.end_to_end.families import WEIGHTS as SPARSE
from tests.passes.helpers import blocky, dense, model_from, run_ort

WEIGHTS = {
    "w1": blocky((256, 96), (16, 16), density=0.3),
    "b1": dense(256),
    "w2": blocky((256, 40), (8, 8), density=0.3),
    "b2": dense(40),
}
TEXT = """g (float[b, 96] x) => (float[b, 40] y) {
    h = Gemm<transB: int = 1>(x, w1, b1)
    a = Relu(h)
    y0 = MatMul(a, w2)
    y = Add(y0, b2)
}"""
#: Largest and mean error over the largest value: about twice what rounding at random loses.
LOST = {"bf16": (0.01, 0.002), "fp16": (0.0015, 0.0003), "int8": (0.03, 0.006)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("low_precision") / "model.onnx"
    onnx.save(model_from(TEXT, WEIGHTS), path)
    return path


def run(path, model, x):
    compiled = build(model, output=path)
    return compiled, bscompile.load(path).run({"x": x})["y"]


@pytest.mark.parametrize("dtype", LOST)
def test_a_model_in_low_precision(dtype, model, tmp_path):
    path, dumps = tmp_path / "model.bsc", tmp_path / "ir"
    compiled = build(model, dtype=dtype, output=path, dump_ir=dumps)
    full = build(model)
    layers = compiled.report.layers
    precision = {"bf16": "bfloat16", "fp16": "float16", "int8": "int8"}[dtype]
    assert [layer.dtype for layer in layers] == [precision] * 2
    assert all(form(layer).endswith(precision) for layer in layers)
    stored = sum(array.nbytes for array in compiled.weights.values())
    assert stored < 0.8 * sum(array.nbytes for array in full.weights.values())
    x = dense(17, 96, seed=5)
    (want,) = run_ort(onnx.load(model), {"x": x})
    got = bscompile.load(path).run({"x": x})["y"]
    assert got.dtype == np.float32
    error, scale = np.abs(got - want), np.abs(want).max()
    largest, mean = LOST[dtype]
    assert 0 < error.max() < largest * scale
    assert error.mean() < mean * scale
    # The rewritten model says in plain ONNX what was built.
    (said,) = run_ort(onnx.load(max(dumps.glob("*.onnx"))), {"x": x})
    # A bfloat16 instruction also rounds x, which the model leaves to the machine.
    assert np.abs(got - said).max() < (largest if dtype == "bf16" else 2e-6) * scale
    found = verify(path, model, samples=2)
    assert found.passed
    assert found.dtypes == {precision: 2}
    assert f"2 in {precision}" in found.lost
    assert verify_float(tmp_path, model).lost == ""


def verify_float(tmp_path, model):
    path = tmp_path / "full.bsc"
    build(model, output=path)
    return verify(path, model, samples=1)


def test_verify_fails_when_more_is_lost_than_the_precision_explains(model, tmp_path):
    path, other = tmp_path / "model.bsc", tmp_path / "other.onnx"
    build(model, dtype="bf16", output=path)
    onnx.save(model_from(TEXT, WEIGHTS | {"w2": WEIGHTS["w2"] * 1.2}), other)
    assert not verify(path, other, samples=2).passed


def test_an_unknown_dtype_is_refused(model):
    with pytest.raises(UsageError, match="unknown dtype 'fp8'"):
        build(model, dtype="fp8")


def test_features_follow_the_precision(model):
    """A float32 artifact never asks for more than the instruction set's baseline."""
    plain = set(build(model).manifest.features)
    for dtype, wanted in (("bf16", "avx512_bf16"), ("int8", "avx512_vnni"), ("fp16", None)):
        more = set(build(model, dtype=dtype).manifest.features) - plain
        assert more <= {wanted, "amx_tile", "amx_bf16", "amx_int8"}


def quantized(model, path, how, feeds=None, **options):
    import onnxruntime.quantization as oq

    class Samples(oq.CalibrationDataReader):
        count = 0

        def get_next(self):
            self.count += 1
            if self.count > 4:
                return None
            return feeds or {"x": dense(17, 96, seed=self.count)}

    signed = {"weight_type": oq.QuantType.QInt8, "per_channel": True, **options}
    if how == "dynamic":
        oq.quantize_dynamic(model, path, **signed)
    else:
        signed["activation_type"] = getattr(oq.QuantType, how)
        oq.quantize_static(model, path, Samples(), quant_format=oq.QuantFormat.QDQ, **signed)
    return path


@pytest.mark.parametrize("how", ["QUInt8", "QInt8", "dynamic"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_models_of_the_quantizer_stay_in_int8(how, per_channel, model, tmp_path):
    path = quantized(model, tmp_path / "q.onnx", how, per_channel=per_channel)
    x = dense(17, 96, seed=77)
    (want,) = run_ort(onnx.load(path), {"x": x})
    compiled, got = run(tmp_path / "q.bsc", path, x)
    assert [layer.op for layer in compiled.report.layers] == ["QuantizedBlockSparseMatMul"] * 2
    assert [layer.dtype for layer in compiled.report.layers] == ["int8"] * 2
    scale = np.abs(want).max()
    if how == "dynamic":
        assert np.abs(got - want).max() < 1e-5 * scale
    else:  # sums are exact, so the same eight bits leave: at most one flips by a rounding
        steps = np.abs(got - want) / (scale / 127)
        assert (steps > 1e-3).mean() < 0.01
        assert steps.max() < 2.1
    notes = [note.text for note in compiled.report.notes if note.pass_name == "Requantize"]
    assert bool(notes) == (how != "dynamic")
    found = verify(tmp_path / "q.bsc", path, samples=2)
    assert found.passed
    assert found.lost == ""  # eight bits are what the model says


def test_between_quantised_layers_eight_bits_move(model, tmp_path):
    path = quantized(model, tmp_path / "q.onnx", "QUInt8")
    dumps = tmp_path / "ir"
    build(path, dump_ir=dumps)
    last = onnx.load(max(dumps.glob("*.onnx")))
    first, second = (n for n in last.graph.node if n.op_type.startswith("Quantized"))
    assert second.input[0] == first.output[0]


def test_asymmetric_weights_are_left_to_plain_operators(model, tmp_path):
    import onnxruntime.quantization as oq

    path = quantized(model, tmp_path / "q.onnx", "QUInt8", weight_type=oq.QuantType.QUInt8)
    x = dense(17, 96, seed=77)
    (want,) = run_ort(onnx.load(path), {"x": x})
    compiled, got = run(tmp_path / "q.bsc", path, x)
    refused = [note for note in compiled.report.notes if note.pass_name == "RecogniseQuantized"]
    assert len(refused) == 2
    assert not any(note.applied for note in refused)
    assert np.abs(got - want).max() < 2.1 * np.abs(want).max() / 127


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
def test_convolutions_and_factorized_layers(dtype, tmp_path):
    """int8 leaves convolutions and fast factors in float32; the others take every layer."""
    rng = np.random.default_rng(3)
    kernel = blocky((32, 16 * 9), (8, 8), density=0.4).reshape(32, 16, 3, 3)
    a = (rng.standard_normal((1, 32, 16)) * (rng.random((32, 16)) < 0.2)).astype(np.float32)
    b = rng.standard_normal((1, 8, 8)).astype(np.float32)
    factorized = np.einsum("rpq,rij->piqj", a, b).reshape(256, 128).astype(np.float32)
    text = """g (float[4, 16, 8, 8] x) => (float[64, 256] y) {
        c = Conv<pads: ints = [1, 1, 1, 1]>(x, k)
        shape = Constant<value_ints: ints = [64, 128]>()
        r = Reshape(c, shape)
        y = MatMul(r, w)
    }"""
    proto = model_from(text, {"k": kernel, "w": np.ascontiguousarray(factorized.T)})
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    compiled = build(path, dtype=dtype, output=tmp_path / "model.bsc")
    conv, matmul = compiled.report.layers
    assert (conv.dtype == "float32") == (dtype == "int8")
    assert (matmul.dtype == "float32") == (dtype == "int8")
    assert ("in float32: " in matmul.reason) == (dtype == "int8")
    assert matmul.found == "kronecker"
    assert verify(tmp_path / "model.bsc", path, samples=1).passed


#: Attention on its own, before a layer or not.
ATTENTION = """g (float[b, s, 48] x, float[b, t, 48] z) => (float[b, s, 48] y) {
    split = Constant<value_ints: ints = [0, 0, 3, 16]>()
    join = Constant<value_ints: ints = [0, 0, 48]>()
    q4 = Reshape(x, split)  q = Transpose<perm: ints = [0, 2, 1, 3]>(q4)
    k4 = Reshape(z, split)  k = Transpose<perm: ints = [0, 2, 3, 1]>(k4)
    v = Transpose<perm: ints = [0, 2, 1, 3]>(k4)
    scores = MatMul(q, k)  p = Softmax(scores)  o = MatMul(p, v)
    t4 = Transpose<perm: ints = [0, 2, 1, 3]>(o)  f = Reshape(t4, join)
    y = LAYER
}"""


@pytest.mark.parametrize(
    ("layer", "dtype", "rounded"),
    [("MatMul(f, w)", "bf16", True), ("MatMul(f, w)", "fp16", False), ("Neg(f)", "bf16", False)],
)
def test_attention_is_in_bfloat16_where_layers_are(layer, dtype, rounded, tmp_path):
    """Not by the option alone: a model without layers says nothing of what it lost."""
    path = tmp_path / "model.onnx"
    weights = {"w": np.eye(48, dtype=np.float32)} if "MatMul" in layer else {}
    proto = model_from(ATTENTION.replace("LAYER", layer), weights)
    onnx.save(proto, path)
    build(path, dtype=dtype, output=tmp_path / "model.bsc")
    loaded = bscompile.load(tmp_path / "model.bsc")
    rounded = rounded and "avx512_bf16" in cpu_features()
    for s, t in [(19, 33), (3, 8), (1, 1)]:
        feeds = {"x": dense(2, s, 48, seed=s), "z": dense(2, t, 48, seed=t)}
        (want,) = run_ort(proto, feeds)
        error = np.abs(loaded.run(feeds)["y"] - want) / np.abs(want).max()
        # Rounded scores of up to 20 move a weight by a few percent, a layer alone nothing by half.
        assert error.max() < (0.1 if rounded else 0.004)
        if t > 1 and dtype == "bf16":
            assert (error.max() > 0.004) == rounded
    assert verify(tmp_path / "model.bsc", path, samples=2).passed


def test_weights_that_overflow_float16_stay_float32(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model_from(TEXT, WEIGHTS | {"w2": WEIGHTS["w2"] * np.float32(1e5)}), path)
    compiled = build(path, dtype="fp16", output=tmp_path / "model.bsc")
    assert [layer.dtype for layer in compiled.report.layers] == ["float16", "float32"]
    assert any("overflow float16" in note.text for note in compiled.report.notes)
    assert verify(tmp_path / "model.bsc", path, samples=1).passed


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dtype"), [("vit", "bf16"), ("llama", "int8")])
def test_whole_families(family, dtype, tmp_path):
    path = tmp_path / "model.onnx"
    exported = export(FAMILIES[family], path)
    onnx.save(with_weights(onnx.load(exported), SPARSE["16x16"]), path)
    compiled = build(path, dtype=dtype, output=tmp_path / "model.bsc")
    assert sum(layer.dtype != "float32" for layer in compiled.report.layers) > 10
    found = verify(tmp_path / "model.bsc", path, samples=1)
    assert found.passed, found.lost


@pytest.mark.slow
@pytest.mark.parametrize("how", ["QUInt8", "dynamic"])
def test_a_quantised_transformer_gives_the_bits_of_onnxruntime(how, tmp_path):
    path = tmp_path / "model.onnx"
    bert = FAMILIES["bert"]
    export(bert, path, dynamic=False, change=lambda module: module)
    onnx.save(with_weights(onnx.load(path), SPARSE["16x16"]), path)
    feeds = {name: value.numpy() for name, value in bert.inputs(False, 2).items()}
    small = quantized(path, tmp_path / "q.onnx", how, feeds=feeds)
    (want,) = run_ort(onnx.load(small), feeds)
    compiled = build(small, output=tmp_path / "q.bsc")
    assert sum(layer.dtype == "int8" for layer in compiled.report.layers) == 12
    (got,) = bscompile.load(tmp_path / "q.bsc").run(feeds).values()
    off, largest = np.abs(got - want).max(axis=-1), np.abs(want).max()
    # A number halfway between two steps goes to either by the last bit of an exp before it, so
    # that a token may be off by less than a step; in the static model none lies there.
    assert (off < 1e-5 * largest).mean() > (0.9 if how == "dynamic" else 0.999)
    assert off.max() < largest / 255

"""Dense layers on cuBLAS: forced both ways, chosen, captured, missing, broken, wrong.

The library and the driver are emulated; which way is faster only a GPU can show, so choices are
forced here or their times are given.
"""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tvm
from onnx import numpy_helper

import bscompile
from bscompile.cli import main
from bscompile.compiler import CompileOptions, compile_model
from bscompile.dialect.precision import PRECISIONS
from bscompile.errors import ArtifactError, TargetError
from bscompile.report import Report
from bscompile.report.measured import attach_times
from bscompile.runtime import cublas, dense
from bscompile.runtime import cuda as runtime
from bscompile.runtime.dense_trial import Trial
from tests.targets.cuda import emulator
from tests.tolerance import assert_close

MODEL = """<ir_version: 9, opset_import: ["" : 20]>
mixed (float[n, 128] x) => (float[n, 128] y) {
  a = MatMul(x, w1)
  b = Add(a, b1)
  c = Gelu(b)
  d = MatMul(c, w2)
  e = MatMul(d, w3)
  y = Add(e, x)
}"""
BOTH = "2 of 2 dense layers on cuBLAS 13.1"
NONE = "0 of 2 dense layers on cuBLAS 13.1"
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def session():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(MODEL)
    live = np.eye(8)[rng.permutation(16) % 8].T  # of 64x64 blocks: every output and input has some
    weights = {
        "w1": rng.standard_normal((128, 1024)) / 12,
        "b1": rng.standard_normal(1024),
        "w2": (np.kron(live, np.ones((64, 64))) * rng.standard_normal((512, 1024))).T / 12,
        "w3": rng.standard_normal((512, 128)) / 24,
    }
    for name, value in weights.items():
        array = np.ascontiguousarray(value, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto, ort.InferenceSession(proto.SerializeToString())


def make(session, precision, folder):
    """(precision, artifact)."""
    emulator.load_cublas()
    # With so many rows the cost model takes kernels to which x comes in 16 bits, where W is.
    options = CompileOptions(target="cuda:sm_90", precision=precision, typical_rows=300)
    compiled = compile_model(session[0], options)
    layers = compiled.report.layers
    assert [layer.form for layer in layers] == ["dense", "block_sparse", "dense"]
    assert ["runs on cuBLAS" in layer.reason for layer in layers] == [True, False, True]
    assert len(json.loads(compiled.members[runtime.DENSE_LAYERS])) == 2
    return precision, compiled.save(folder / "m.bsc")


@pytest.fixture(scope="module")
def built(session, on_emulator, tmp_path_factory):
    return make(session, "bfloat16", tmp_path_factory.mktemp("cublas"))


def check(session, built, loaded, rows, seed=0):
    """One call against onnxruntime; the result."""
    x = np.random.default_rng(seed).standard_normal((rows, 128)).astype(np.float32)
    want, got = session[1].run(None, {"x": x})[0], loaded.run({"x": x})["y"]
    assert np.abs(got - want).max() <= TOLERANCE[built[0]] * np.abs(want).max()
    return got


@pytest.fixture
def opened(built, monkeypatch):
    """(what the environment says) -> the model."""
    held = []

    def load(wanted, fault=""):
        monkeypatch.setenv(dense.SWITCH, wanted)
        monkeypatch.setenv("EMULATED_CUBLAS_FAULT", fault)
        held.append(bscompile.load(built[1]))
        return held[-1]

    yield load
    for model in held:
        model.close()


def test_calls_and_graphs_run_on_it_where_it_is_forced(session, built, opened):
    loaded = opened("always")
    assert loaded.remark == ""
    for seed, rows in enumerate((5, 37, 5, 37, 5, 1)):
        check(session, built, loaded, rows, seed)
        assert loaded.remark == BOTH
    assert loaded._executor._recorder.graphs == 0  # new shapes drop them
    for seed in range(3):
        check(session, built, loaded, 37, seed)
    assert loaded._executor._recorder.graphs == 1
    assert loaded.remark == BOTH


@pytest.mark.usefixtures("on_emulator")
def test_layers_in_float32_run_on_it_too(session, monkeypatch, tmp_path):
    built = make(session, "float32", tmp_path)
    monkeypatch.setenv(dense.SWITCH, "always")
    with bscompile.load(built[1]) as loaded:
        check(session, built, loaded, 21)
        assert loaded.remark == BOTH


def test_commands_say_how_many(built, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(dense.SWITCH, "always")
    np.save(tmp_path / "x.npy", np.ones((3, 128), np.float32))
    for arguments in (
        ("run", built[1], "--input", tmp_path / "x.npy"),
        ("bench", built[1], "--seconds", 0.01),
        ("inspect", built[1], "--measure"),
    ):
        assert main([str(argument) for argument in arguments]) == 0
        assert BOTH in capsys.readouterr().err


@pytest.mark.usefixtures("on_emulator")
@pytest.mark.parametrize(
    ("dtype", "made"),
    [("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32"), ("float16",) * 2],
)
def test_its_products_are_exact(dtype, made, rng):
    emulator.load_cublas()
    runtime.load_cuda()
    library = cublas.Cublas(cublas.open_library(), runtime._empty((cublas.WORKSPACE,), "uint8"))
    x, weight = (
        rng.standard_normal(shape).astype(PRECISIONS[dtype]) for shape in ((5, 24), (7, 24))
    )
    y = tvm.runtime.tensor(np.zeros((5, 7), made), tvm.cuda(0))
    library.linear(*(tvm.runtime.tensor(array, tvm.cuda(0)) for array in (x, weight)), y, 0)
    library.close()
    want = x.astype(np.float64) @ weight.astype(np.float64).T
    assert_close(y.numpy(), want, np.dtype(made), 24)


def test_kernels_keep_their_names_in_profiles(built, opened):
    loaded = opened("always")
    calls = loaded.profile({"x": np.ones((3, 128), np.float32)}, repeats=1)
    report = Report.from_json(loaded.members["report.json"])
    assert attach_times(report, calls) is not None


def test_without_it_the_same_kernels_run(session, built, opened, monkeypatch):
    with_it = check(session, built, opened("always"), 9)
    off = opened("off")
    want = check(session, built, off, 9)
    assert off.remark == ""
    assert (want != with_it).any()  # sums in another order: it did run

    def nowhere(*names, mode=0):
        return None

    monkeypatch.setattr(cublas, "load_library", nowhere)
    without = opened("")
    np.testing.assert_array_equal(check(session, built, without, 9), want)
    assert without.remark == ""


def test_the_faster_way_is_taken_and_remembered(session, built, opened, monkeypatch):
    asked = []

    def given(self, *ways):
        asked.append(len(ways))
        return times

    monkeypatch.setattr(Trial, "seconds", given)
    times = [2.0, 1.0]
    loaded = opened("")
    check(session, built, loaded, 33)
    check(session, built, loaded, 50)  # as many, in powers of two
    assert (loaded.remark, asked) == (BOTH, [2, 2])
    times = [1.0, 2.0]
    check(session, built, loaded, 100)
    assert (loaded.remark, len(asked)) == (NONE, 4)
    check(session, built, loaded, 33)
    assert (loaded.remark, len(asked)) == (BOTH, 4)


def test_times_are_taken(session, built, opened):
    """Whatever they are on an emulator."""
    loaded = opened("")
    check(session, built, loaded, 6)
    assert loaded.remark.endswith("of 2 dense layers on cuBLAS 13.1")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("create", "cublasCreate_v2 failed with 1"),
        ("product", "cublasGemmEx failed with 13"),
        ("wrong", r"a layer of 1024x128 is off by \S+ with 7 rows"),
    ],
)
def test_one_that_fails_or_is_wrong_costs_a_line(fault, said, session, built, opened):
    want = check(session, built, opened("off"), 7)
    for wanted in ("always", ""):
        loaded = opened(wanted, fault)
        for _ in range(3):
            np.testing.assert_array_equal(check(session, built, loaded, 7), want)
        assert re.match(f"cuBLAS is not used, since it failed here: {said}", loaded.remark)


def test_libraries_that_the_user_names(session, built, opened, tmp_path):
    loaded = opened("libcudart.so.13")  # a library, but none with products
    check(session, built, loaded, 3)
    assert "cublasCreate_v2" in loaded.remark
    with pytest.raises(TargetError, match=r"BSCOMPILE_CUBLAS: '.*gone\.so' cannot be loaded"):
        opened(str(tmp_path / "gone.so"))


def test_a_broken_list_is_refused_in_a_line():
    for member in (b"[]", b"{", b'{"a": 1}', b'{"a": {"epilogue": ""}}'):
        with pytest.raises(ArtifactError, match="its list of dense layers cannot be read"):
            dense.DenseLayers(member, None)

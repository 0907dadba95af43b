"""The whole road from the command line: build, then everything else on what was built."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import bscompile


def sparse(rng, out, inner, block, density):
    mask = rng.random((out // block, inner // block)) < density
    weight = rng.standard_normal((out, inner)) * np.kron(mask, np.ones((block, block)))
    return (weight / np.sqrt(inner * density)).astype(np.float32)


def two_layers(dtype=np.float32):
    """x [batch, 64] -> relu(x W1 + b1) W2; W1 keeps a quarter of its 16x16 blocks."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": sparse(rng, 128, 64, 16, 0.25).T,
        "b1": rng.standard_normal(128),
        "w2": rng.standard_normal((128, 10)) / 10,
    }
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "two_layers",
        [helper.make_tensor_value_info("x", code, ["batch", 64])],
        [helper.make_tensor_value_info("y", code, ["batch", 10])],
        [
            numpy_helper.from_array(np.ascontiguousarray(array, dtype), name)
            for name, array in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "two.onnx"
    onnx.save(two_layers(), path)
    return path


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("built") / "two.bsc"
    bscompile.build(source, output=path)
    return path


def test_build_writes_an_artifact_that_verifies(call, source, tmp_path):
    goal = tmp_path / "two.bsc"
    code, out, err = call("build", source, "-o", goal, "--threads", 1)
    assert code == 0, err
    assert out == f"{goal}\n"
    assert "first" in err
    assert "block 16x16" in err
    code, out, _ = call("verify", goal, source)
    assert code == 0, out
    code, out, _ = call("inspect", goal, "--json")
    assert json.loads(out)["threads"] == 1


def test_build_in_low_precision_says_what_it_costs(call, source, tmp_path):
    goal = tmp_path / "two.bsc"
    code, _, err = call("build", source, "-o", goal, "--dtype", "bf16")
    assert code == 0, err
    assert "bfloat16" in err
    code, out, _ = call("verify", goal, source)
    assert code == 0, out
    assert "accuracy lost (2 in bfloat16): at most 0." in out
    code, out, _ = call("inspect", source, "--dtype", "int8", "--json")
    assert {layer["dtype"] for layer in json.loads(out)["layers"]} == {"int8"}
    code, _, err = call("build", source, "-o", goal, "--dtype", "fp4")
    assert code == 2
    assert "fp4" in err


def test_build_json_names_the_file_and_its_hash(call, source, tmp_path):
    goal = tmp_path / "two.bsc"
    code, out, err = call("build", source, "-o", goal, "--json")
    assert (code, err.count("Traceback")) == (0, 0)
    result = json.loads(out)
    assert result["artifact"] == str(goal)
    assert result["bytes"] == goal.stat().st_size
    assert result["sha256"] == hashlib.sha256(goal.read_bytes()).hexdigest()
    assert [layer["name"] for layer in result["report"]["layers"]] == ["first", "second"]


def test_quiet_leaves_only_the_result(call, source, tmp_path):
    code, out, err = call("build", source, "-q", "-o", tmp_path / "q.bsc")
    assert (code, out, err) == (0, f"{tmp_path / 'q.bsc'}\n", "")


def test_dumped_models_run_in_onnxruntime(call, source, tmp_path):
    goal, dumps = tmp_path / "two.bsc", tmp_path / "dumps"
    code, _, err = call("build", source, "-o", goal, "--dump-ir", dumps)
    assert code == 0, err
    x = np.random.default_rng(1).standard_normal((3, 64), np.float32)
    want = onnxruntime.InferenceSession(source).run(None, {"x": x})[0]
    files = sorted(dumps.glob("*.onnx"))
    assert len(files) > 3
    for file in files:
        got = onnxruntime.InferenceSession(file).run(None, {"x": x})[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5, err_msg=file.name)


def test_inspect_of_the_model_and_of_the_artifact_agree(call, source, built):
    _, planned, _ = call("inspect", source, "--json")
    _, done, _ = call("inspect", built, "--json")
    planned, done = json.loads(planned), json.loads(done)
    for left, right in zip(planned["layers"], done["layers"], strict=True):
        keys = ("name", "shape", "rows", "trained_block", "density", "dense_flops", "dense_bytes")
        assert {key: left[key] for key in keys} == {key: right[key] for key in keys}


def test_inspect_times_every_layer(call, built):
    code, out, _ = call("inspect", built, "--measure", "--dim", "batch=9", "--json")
    assert code == 0
    assert all(layer["measured_seconds"] > 0 for layer in json.loads(out)["layers"])


def test_the_artifact_holds_little_but_live_weights(built):
    report = bscompile.inspect(built)
    live = report.totals()["bytes"] + 128 * 4
    stored = bscompile.load(built).manifest.members["weights.safetensors"].size
    assert stored < 1.2 * live + 1500  # names and shapes of so small a model weigh something


def test_a_half_precision_model_is_stored_in_half_precision(call, tmp_path):
    onnx.save(two_layers(np.float16), tmp_path / "half.onnx")
    code, _, err = call("build", tmp_path / "half.onnx", "-o", tmp_path / "half.bsc")
    assert code == 0, err
    params = bscompile.load(tmp_path / "half.bsc").manifest.params
    matrices = [param for param in params if len(param.shape) > 1]
    assert {(param.stored, param.used) for param in matrices} == {("float16", "float32")}
    code, out, _ = call("verify", tmp_path / "half.bsc", tmp_path / "half.onnx")
    assert code == 0, out


def test_built_and_run_in_one_process(source, built, tmp_path):
    x = np.random.default_rng(2).standard_normal((5, 64), np.float32)
    compiled = bscompile.build(onnx.load(source))
    y = bscompile.load(compiled.save(tmp_path / "two.bsc"))(x)
    want = onnxruntime.InferenceSession(source).run(None, {"x": x})[0]
    np.testing.assert_allclose(y, want, rtol=0, atol=2e-5)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", 3), (b"no model", 3), (None, 3), (b"PK\x03\x04 no artifact either", 3)],
    ids=["empty", "text", "truncated", "zip"],
)
def test_a_broken_model_is_one_line(call, source, tmp_path, content, code):
    path = tmp_path / "broken.onnx"
    path.write_bytes(source.read_bytes()[:-500] if content is None else content)
    got, out, err = call("build", path, "-o", tmp_path / "m.bsc")
    assert (got, out) == (code, ""), err
    assert "broken.onnx" in err
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["broken.onnx"]


def test_a_missing_model_is_one_line(call, tmp_path):
    code, out, err = call("build", tmp_path / "none.onnx")
    assert (code, out) == (6, "")
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_an_unwritable_output_is_refused_before_the_work(call, source, tmp_path):
    begun = time.perf_counter()
    code, out, err = call("build", source, "-o", tmp_path / "none" / "m.bsc")
    assert (code, out) == (6, "")
    assert "make the folder" in err
    assert err.count("\n") == 1
    assert time.perf_counter() - begun < 1


def test_the_model_is_not_overwritten(call, source):
    before = source.read_bytes()
    code, _, err = call("build", source, "-o", source)
    assert code == 2
    assert "the artifact would replace the model" in err
    assert source.read_bytes() == before


def test_an_unknown_variant_is_named(call, source, tmp_path):
    code, _, err = call("build", source, "--target", "cpu:avx513", "-o", tmp_path / "m.bsc")
    assert code == 5
    assert "avx512" in err
    assert os.listdir(tmp_path) == []


PHASES = [
    ("looking at target cpu", 0.0),
    ("pass 1/", 0.0),
    ("lowering to Relax", 0.0),
    ("lowering to Relax", 0.6),
    ("lowering to Relax", 1.2),
    ("generating code", 0.0),
]


@pytest.mark.parametrize(("phase", "later"), PHASES)
def test_an_interrupted_build_leaves_nothing(source, tmp_path, phase, later):
    """Phases tell when they end; code is generated after the lowering, mostly inside of TVM."""
    (tmp_path / "out").mkdir()
    (tmp_path / "temporary").mkdir()
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bscompile.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "build", source, "-v", "-o", tmp_path / "out" / "m.bsc"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    assert any(line.startswith(phase) for line in iter(process.stderr.readline, ""))
    time.sleep(later)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0 or os.listdir(tmp_path / "out"):
        assert later or phase == "generating code"  # it was done before the signal came
        return
    assert process.returncode == 130, err
    assert "bscompile: interrupted; no file was left half written" in err.splitlines()
    assert "Traceback" not in err
    assert os.listdir(tmp_path / "temporary") == []


def test_a_full_disk_for_temporary_files_is_one_line(source, tmp_path):
    """LLVM would end the process without a word of ours."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)); "
        "from bscompile.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "build", source, "-q", "-o", tmp_path / "m.bsc"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 6, done.stderr
    assert "object code cannot be written, file too large" in done.stderr
    assert os.listdir(tmp_path) == []


def test_weights_beside_the_model_are_read(call, tmp_path):
    """External data from the file to the verified artifact."""
    options = {"save_as_external_data": True, "location": "two.data", "size_threshold": 64}
    onnx.save(two_layers(), tmp_path / "two.onnx", **options)
    assert (tmp_path / "two.data").stat().st_size > 4 * 128 * 64
    code, _, err = call("build", tmp_path / "two.onnx", "-o", tmp_path / "two.bsc")
    assert code == 0, err
    code, out, _ = call("verify", tmp_path / "two.bsc", tmp_path / "two.onnx")
    assert code == 0, out
    x = np.random.default_rng(3).standard_normal((2, 64), np.float32)
    y = bscompile.load(tmp_path / "two.bsc")(x)
    want = onnxruntime.InferenceSession(tmp_path / "two.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(y, want, rtol=0, atol=2e-5)


def test_a_dimension_can_be_fixed(call, source, tmp_path):
    goal = tmp_path / "fixed.bsc"
    code, _, err = call("build", source, "-o", goal, "--dim", "batch=2")
    assert code == 0, err
    assert [spec.shape for spec in bscompile.load(goal).inputs] == [(2, 64)]
    code, out, _ = call("verify", goal, source)
    assert code == 0, out
    wrong = tmp_path / "wrong.bsc"
    code, _, err = call("build", source, "-o", wrong, "--dim", "bach=2")
    assert (code, wrong.exists()) == (3, False)
    assert "Did you mean 'batch'" in err

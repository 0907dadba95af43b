"""Each command on a hand-made artifact and its ONNX model."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest

from tests.cli.conftest import affine_onnx
from tests.handmade import affine_reference
from tests.tolerance import assert_close


@pytest.fixture
def x(tmp_path):
    array = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    np.save(tmp_path / "x.npy", array)
    return tmp_path / "x.npy"


# ---------------------------------------------------------------- run


@pytest.mark.parametrize("form", ["x={}", "{}"])
def test_run_writes_every_output(call, artifact, x, tmp_path, form):
    goal = tmp_path / "results" / "here"
    code, out, err = call("run", artifact, "--input", form.format(x), "--output", goal)
    assert code == 0, err
    assert sorted(os.listdir(goal)) == ["product.npy", "same_w.npy", "same_x.npy", "y.npy"]
    for name, want in affine_reference(np.load(x)).items():
        assert_close(np.load(goal / f"{name}.npy"), want, np.float32, 8)
        assert f"{name}: float32[3, 4]" in out


def test_run_takes_npz_and_gives_json(call, artifact, tmp_path):
    np.savez(tmp_path / "all.npz", x=np.ones((2, 8), np.float32))
    code, out, _ = call("run", artifact, "--input", tmp_path / "all.npz", "--json")
    assert code == 0
    result = json.loads(out)
    assert [entry["name"] for entry in result["outputs"]] == ["y", "product", "same_x", "same_w"]
    same_x = result["outputs"][2]
    assert (same_x["shape"], same_x["min"], same_x["max"]) == ([2, 8], 1.0, 1.0)
    assert result["seconds"] > 0


def test_run_gives_json_without_infinities(call, artifact, tmp_path):
    np.save(tmp_path / "x.npy", np.full((1, 8), np.inf, np.float32))
    code, out, _ = call("run", artifact, "--input", tmp_path / "x.npy", "--json")
    assert code == 0
    assert json.loads(out)["outputs"][2]["max"] is None


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [
        ("z={x}", 2, "no input is named 'z' (known: x)"),
        ("x={tmp}/none.npy", 6, "none.npy: cannot be read, no such file"),
        ("x={tmp}", 6, "cannot be read, is a directory"),
        ("{tmp}/text.npy", 6, "text.npy: not a .npy or .npz file of plain arrays"),
        ("{tmp}/object.npy", 6, "object.npy: not a .npy or .npz file of plain arrays"),
        ("{tmp}/cut.npy", 6, "cut.npy: not a .npy or .npz file"),
        ("{tmp}/double.npy", 2, "input x: float32 is wanted, got float64"),
        ("{tmp}/wide.npy", 2, "axis 1 is 8 long, got [3, 9]"),
        ("x={tmp}/two.npz", 2, "two.npz holds 2 arrays, one is wanted"),
    ],
)
def test_run_refuses_a_wrong_input_in_one_line(
    call, artifact, x, tmp_path, argument, code, message
):
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(x.read_bytes()[:-5])
    np.save(tmp_path / "double.npy", np.zeros((3, 8)))
    np.save(tmp_path / "wide.npy", np.zeros((3, 9), np.float32))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    got, out, err = call("run", artifact, "--input", argument.format(x=x, tmp=tmp_path))
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_run_refuses_an_input_given_twice(call, artifact, x):
    code, _, err = call("run", artifact, "--input", f"x={x}", "--input", f"x={x}")
    assert code == 2
    assert "the input x was given already" in err


def test_run_names_a_missing_input(call, artifact):
    code, _, err = call("run", artifact)
    assert code == 2
    assert "input x is missing (the model takes x: float32[n, 8])" in err


def test_run_refuses_a_changed_artifact(call, artifact, x, tmp_path):
    content = bytearray(artifact.read_bytes())
    content[100] ^= 1
    (tmp_path / "changed.bsc").write_bytes(content)
    code, _, err = call("run", tmp_path / "changed.bsc", "--input", x)
    assert code == 4
    assert "its content was changed after the build" in err


def test_run_says_where_it_cannot_write(call, artifact, x, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("run", artifact, "--input", x, "--output", tmp_path / "file" / "sub")
    assert code == 6
    assert "cannot be made, not a directory" in err


# ---------------------------------------------------------------- verify


def test_verify_passes_the_right_model(call, artifact, model):
    code, out, err = call("verify", artifact, model, "-v")
    assert code == 0, err
    assert "passed, 16 outputs" in out
    assert "tolerance: 16 eps(1.19e-07) sqrt(64) max|wanted|" in out
    assert out.count("sample 0, n=1:") == 4


def test_verify_fails_a_changed_weight_and_names_the_worst_output(call, artifact, tmp_path):
    onnx.save(affine_onnx(change=0.01), tmp_path / "other.onnx")
    code, out, _ = call("verify", artifact, tmp_path / "other.onnx", "--samples", 1)
    assert code == 1
    assert "FAILED" in out
    assert "worst: same_w at [3, 2], sample 0, n=1: error 0.01," in out


def test_verify_json(call, artifact, model, tmp_path):
    code, out, _ = call("verify", artifact, model, "--samples", 2, "--dim", "n=5", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["passed"]
    assert {entry["lengths"]["n"] for entry in result["comparisons"]} == {5}
    onnx.save(affine_onnx(change=np.nan), tmp_path / "nan.onnx")
    code, out, _ = call("verify", artifact, tmp_path / "nan.onnx", "--samples", 1, "--json")
    assert code == 1
    assert json.loads(out)["worst"]["error"] is None


def test_verify_is_the_same_for_the_same_seed(call, artifact, model):
    runs = [call("verify", artifact, model, "--seed", seed, "--json")[1] for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_verify_refuses_another_model(call, artifact, tmp_path):
    other = affine_onnx()
    other.graph.input[0].name = "z"
    other.graph.node[0].input[0] = "z"
    other.graph.node[3].input[0] = "z"
    onnx.save(other, tmp_path / "other.onnx")
    code, _, err = call("verify", artifact, tmp_path / "other.onnx")
    assert code == 3
    assert "the artifact has the inputs x, the ONNX model has z" in err


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x09" * 50])
def test_verify_refuses_what_is_no_model(call, artifact, tmp_path, content):
    (tmp_path / "broken.onnx").write_bytes(content)
    code, _, err = call("verify", artifact, tmp_path / "broken.onnx")
    assert code == 3
    assert "onnxruntime refuses it" in err
    assert err.count("\n") == 1


def test_verify_names_a_missing_model(call, artifact):
    code, _, err = call("verify", artifact, "none.onnx")
    assert code == 6
    assert "none.onnx: cannot be read, no such file" in err


# ---------------------------------------------------------------- bench


def test_bench_beside_onnxruntime(call, artifact, model):
    code, out, err = call("bench", artifact, "--against", model, "--seconds", "0.05")
    assert code == 0, err
    assert "bscompile" in out
    assert "onnxruntime" in out
    assert "times onnxruntime's speed" in out
    assert "n=1" in err


def test_bench_json(call, artifact):
    arguments = ("--seconds", "0.05", "--dim", "n=6", "--threads", 1, "--json")
    code, out, _ = call("bench", artifact, *arguments)
    result = json.loads(out)
    assert code == 0
    assert (result["samples"], result["threads"], result["lengths"]) == (6, 1, {"n": 6})
    assert result["onnxruntime"] is None
    latency = result["artifact"]
    assert 0 < latency["minimum"] <= latency["p10"] <= latency["median"] <= latency["p90"]
    assert result["throughput"] == pytest.approx(6 / latency["median"])


def test_bench_names_an_unknown_dimension(call, artifact):
    code, _, err = call("bench", artifact, "--dim", "m=6")
    assert code == 2
    assert "no dimension is named 'm' (known: n)" in err


# ---------------------------------------------------------------- inspect, targets


def test_inspect_tells_an_artifact_by_its_content(call, artifact, tmp_path):
    disguised = tmp_path / "model.onnx"
    disguised.write_bytes(artifact.read_bytes())
    code, out, err = call("inspect", disguised)
    assert code == 0, err
    assert "No linear layer was found" in out


def test_inspect_measures_kernels(call, artifact):
    code, out, err = call("inspect", artifact, "--measure")
    assert code == 0, err
    assert "matmul" in out
    code, out, _ = call("inspect", artifact, "--measure", "--json")
    assert any("matmul" in entry["kernel"] for entry in json.loads(out)["kernels"])


def test_inspect_measures_artifacts_only(call, model):
    code, _, err = call("inspect", model, "--measure")
    assert code == 2
    assert "is not an artifact (build it first)" in err


def test_targets_lists_every_target(call):
    from bscompile.targets import TARGETS

    code, out, err = call("targets", "--json")
    assert (code, err) == (0, "")
    entries = json.loads(out)["targets"]
    assert [entry["name"] for entry in entries] == list(TARGETS)
    code, out, _ = call("targets")
    assert code == 0
    assert all(f"{name}:" in out for name in TARGETS)

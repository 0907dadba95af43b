"""bscompile export: a whole folder or none, nothing foreign replaced, one line for each mistake."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.conftest import affine_onnx
from tests.targets.webgpu.handmade import some_inputs, write_handmade


@pytest.fixture
def web_artifact(tmp_path):
    return write_handmade(tmp_path / "model.bsc")


@pytest.fixture
def model_file(tmp_path):
    """The ONNX model that the hand-made artifact stands for."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from tests.targets.webgpu.handmade import LONG, WEIGHT

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Relu", ["product"], ["y"]),
        helper.make_node("Concat", ["count", "rest"], ["indices"], axis=0),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "handmade",
        [info("count", TensorProto.INT32, [1]), info("x", TensorProto.FLOAT, [2, 3])],
        [info("y", TensorProto.FLOAT, [2, 4]), info("indices", TensorProto.INT32, [LONG])],
        [
            numpy_helper.from_array(WEIGHT.astype(np.float32), "w"),
            numpy_helper.from_array(np.arange(1, LONG, dtype=np.int32), "rest"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_a_folder_is_written_and_replaced(call, web_artifact, tmp_path):
    folder = tmp_path / "web"
    for _ in range(2):
        code, out, err = call("export", web_artifact, "--format", "web", folder)
        assert code == 0, err
        assert f"{folder / 'index.html'}: " in out
        assert "http.server" in err
    assert {path.name for path in tmp_path.iterdir()} == {"model.bsc", "web"}
    assert (folder / "bscompile.js").is_file()
    assert (folder / "code" / "kernels.wgsl").is_file()
    settings = json.loads((folder / "page.json").read_text())
    assert settings == {"labels": None, "expected_by": None}


def test_sample_reference_and_labels_come_with_it(call, web_artifact, model_file, tmp_path):
    inputs = some_inputs()
    np.savez(tmp_path / "x.npz", **inputs)
    (tmp_path / "names.txt").write_text("cat\ndög\n", encoding="utf-8")
    code, out, err = call(
        *("export", web_artifact, tmp_path / "web", "--format", "web", "--json"),
        *("--input", tmp_path / "x.npz", "--against", model_file),
        *("--labels", tmp_path / "names.txt"),
    )
    assert code == 0, err
    assert json.loads(out)["open"] == str(tmp_path / "web" / "index.html")
    sample = load_file(tmp_path / "web" / "sample.safetensors")
    np.testing.assert_array_equal(sample["input/x"], inputs["x"])
    np.testing.assert_array_equal(sample["expected/y"][1], [37.5, 40, 42.5, 45])
    settings = json.loads((tmp_path / "web" / "page.json").read_text())
    assert settings["labels"] == ["cat", "dög"]
    assert settings["expected_by"].startswith("onnxruntime 1.")


def test_foreign_files_are_not_replaced(call, web_artifact, tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "index.html").write_text("mine")
    code, _, err = call("export", web_artifact, "--format", "web", folder)
    assert code == 6
    assert "holds files that are no export" in err
    assert [path.name for path in folder.iterdir()] == ["index.html"]


def test_a_failure_leaves_the_earlier_export(call, web_artifact, tmp_path, monkeypatch):
    folder = tmp_path / "web"
    assert call("export", web_artifact, "--format", "web", folder)[0] == 0
    before = (folder / "manifest.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bscompile.export.web._unpack", full)
    code, _, err = call("export", web_artifact, "--format", "web", folder)
    assert code == 6
    assert "no space left" in err
    assert (folder / "manifest.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model.bsc", "web"}


def test_an_artifact_for_another_target_is_refused(call, artifact, tmp_path):
    code, _, err = call("export", artifact, "--format", "web", tmp_path / "web")
    assert code == 5
    assert "built for cpu, a browser needs webgpu (build it with --target webgpu)" in err
    assert not (tmp_path / "web").exists()


def test_another_model_is_refused(call, web_artifact, tmp_path):
    import onnx

    onnx.save(affine_onnx(), tmp_path / "affine.onnx")
    code, _, err = call(
        *("export", web_artifact, "--format", "web", tmp_path / "web"),
        *("--against", tmp_path / "affine.onnx"),
    )
    assert code == 3
    assert "the artifact has the inputs count, x" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--format", "pdf"), 2, "'pdf' is not one of 'web', 'native'"),
        ((), 2, "Missing option '--format'"),
        (("--format", "web", "--labels", "absent.txt"), 6, "absent.txt: cannot be read"),
        (("--format", "web", "--input", "x=absent.npy"), 6, "absent.npy: cannot be read"),
    ],
)
def test_mistakes_get_one_line(call, web_artifact, tmp_path, arguments, code, message):
    got, _, err = call("export", web_artifact, tmp_path / "web", *arguments)
    assert got == code
    assert message in err
    assert not (tmp_path / "web").exists()


def test_a_sample_of_another_shape_is_refused(call, web_artifact, tmp_path):
    np.savez(tmp_path / "x.npz", **(some_inputs() | {"x": np.zeros((3, 3), np.float32)}))
    code, _, err = call(
        *("export", web_artifact, "--format", "web", tmp_path / "web"),
        *("--input", tmp_path / "x.npz"),
    )
    assert code == 2
    assert "input x: float32[2, 3] is wanted, got float32[3, 3]" in err

"""What the last pass leaves is a valid ONNX file that ONNX Runtime opens and runs."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bscompile.errors import StorageError
from bscompile.importer import load_model
from bscompile.passes import pipeline
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.passes.write_dialect import WriteDialect, save_copy
from tests.passes.helpers import blocky, dense, keep_form, model_from, op_types, run_ort
from tests.tolerance import assert_close

TEXT = """g (float[N, 8] x) => (float[N, 8] y) {
    a = MatMul(x, w)
    b = Relu(a)
    y = MatMul(b, w)
}"""


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 21, 23, 24, 25])
def test_the_file_is_valid_and_runs_at_every_opset(tmp_path, opset):
    proto = model_from(TEXT, {"w": blocky((8, 8))}, opset=opset)
    model = load_model(proto)
    pipeline.run(model, pipeline.pipeline(keep_form))
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    x = dense(3, 8)
    got = ort.InferenceSession(path).run(None, {"x": x})[0]
    assert_close(got, run_ort(proto, {"x": x})[0], np.float32, 8)


def test_equal_weights_are_stored_once():
    model = load_model(model_from(TEXT, {"w": blocky((8, 8))}))
    RecogniseLinear()(model)
    assert len(model.graph.initializers) == 6
    WriteDialect()(model)
    assert len(model.graph.initializers) == 3
    assert len(model.functions) == 1


def test_unused_weights_go_and_names_differ():
    proto = model_from(TEXT, {"w": blocky((8, 8)), "unused": dense(500, 500)})
    for node in proto.graph.node:
        node.name = "same"
    model = load_model(proto)
    pipeline.run(model, pipeline.pipeline(keep_form))
    assert "unused" not in model.graph.initializers
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)


def test_a_folded_transpose_that_no_layer_reads_can_be_written():
    text = """g (float[N, 6] x) => (float[N, 4, 6] y) {
        t = Transpose<perm: ints = [1, 0]>(w)
        e = Unsqueeze(x, axis)
        y = Add(e, t)
    }"""
    proto = model_from(text, {"w": dense(6, 4), "axis": np.array([1])})
    model = load_model(proto)
    FoldConstants()(model)
    WriteDialect()(model)
    assert op_types(model) == ["Unsqueeze", "Add"]
    x = dense(2, 6)
    np.testing.assert_array_equal(run_ort(model, {"x": x})[0], run_ort(proto, {"x": x})[0])


def test_a_saved_copy_runs_and_the_model_stays_as_it_was(tmp_path):
    proto = model_from(TEXT, {"w": blocky((8, 8))})
    model = load_model(proto)
    RecogniseLinear()(model)
    path = tmp_path / "new" / "folder" / "m.onnx"
    save_copy(model, path)
    assert not model.functions
    x = dense(3, 8)
    got = ort.InferenceSession(path).run(None, {"x": x})[0]
    assert_close(got, run_ort(proto, {"x": x})[0], np.float32, 8)


def test_a_copy_that_fails_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    def save(model, path, external_data):
        path.write_bytes(b"the disk is full after this")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bscompile.passes.write_dialect.ir.save", save)
    model = load_model(model_from(TEXT, {"w": dense(8, 8)}))
    with pytest.raises(StorageError, match="No space left"):
        save_copy(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_with_large_tensors_has_them_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("bscompile.passes.write_dialect._INLINE_BYTES", 100)
    model = load_model(model_from(TEXT, {"w": dense(8, 8)}))
    save_copy(model, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    x = dense(3, 8)
    got = ort.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x})[0]
    assert_close(got, run_ort(load_model(tmp_path / "m.onnx"), {"x": x})[0], np.float32, 8)


def test_a_copy_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = load_model(model_from(TEXT, {"w": dense(8, 8)}))
    with pytest.raises(StorageError, match="cannot write"):
        save_copy(model, tmp_path / "file" / "m.onnx")


def test_a_weight_without_any_live_block_runs():
    proto = model_from(
        "g (float[N, 8] x) => (float[N, 8] y) { y = MatMul(x, w) }",
        {"w": np.zeros((8, 8), np.float32)},
    )
    model = load_model(proto)
    pipeline.run(model, pipeline.pipeline(keep_form))
    np.testing.assert_array_equal(run_ort(model, {"x": dense(3, 8)})[0], np.zeros((3, 8)))

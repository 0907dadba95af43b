import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from bscompile.dialect import is_dialect, read_node
from bscompile.errors import StorageError, UsageError
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.importer import load_model
from bscompile.models import BlockSparseConv2d, BlockSparseLinear, export_onnx
from bscompile.passes.pipeline import pipeline
from tests.passes.helpers import keep_form
from tests.tolerance import assert_close


@pytest.fixture
def model():
    torch.manual_seed(0)
    first, second = BlockSparseLinear(16, 24, (4, 8), 3), BlockSparseLinear(24, 8, 4, 1)
    first.mask.view(-1)[::2] = False
    return nn.Sequential(first, nn.ReLU(), second).eval()


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def constants(path):
    return {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("form", ["factorized", "merged"])
@pytest.mark.parametrize("rows", [1, 5])
def test_exported_model_gives_the_same_answers_for_any_batch(model, tmp_path, form, rows):
    path = export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 16), form)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    x = torch.randn(rows, 16)
    assert_close(run(path, x), model(x).detach(), "float32", 48)


def test_leading_axes_are_kept(tmp_path):
    model = nn.Sequential(BlockSparseLinear(16, 8, 4, 2))
    path = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 5, 16))
    x = torch.randn(3, 5, 16)
    assert_close(run(path, x), model(x).detach(), "float32", 32)


def test_factorized_form_is_products_by_two_constants(model, tmp_path):
    path = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 16))
    names = [node.op_type for node in onnx.load(path).graph.node]
    assert set(names) == {"Reshape", "MatMul", "Transpose", "Add", "Relu"}
    assert names.count("MatMul") == 4
    # The constants are the factors of formats.KroneckerSum, S folded in.
    held = constants(path)
    m1, n1, bh, bw, r = 6, 2, 4, 8, 3
    b = held["0.patterns"].reshape(bw, r, bh).transpose(1, 2, 0)
    a = held["0.coefficients"].reshape(r, n1, m1).transpose(0, 2, 1)
    factors = KroneckerSum(np.ascontiguousarray(a), np.ascontiguousarray(b))
    assert factors.support.sum() == 6
    assert_close(factors.to_dense(), model[0].weight.detach(), "float32", 3)


def test_merged_form_has_as_many_zero_blocks_as_the_model(model, tmp_path):
    path = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 16), "merged")
    weight = BlockSparseMatrix.from_dense(constants(path)["0.weight"], (4, 8))
    assert weight.nnzb == int(model[0].support().sum()) == 6


def test_large_layers_stay_recognisable(tmp_path):
    # Above the exporter's folding limits (8192 elements in, 262144 out).
    model = nn.Sequential(BlockSparseLinear(512, 1024, 8, 2))
    path = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 512))
    assert {n.op_type for n in onnx.load(path).graph.node} == {
        "Reshape", "MatMul", "Transpose", "Add",
    }  # fmt: skip
    x = torch.randn(3, 512)
    assert_close(run(path, x), model(x).detach(), "float32", 1024)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2},
        {"kernel_size": (9, 7), "bias": False},
    ],
)
def test_factorized_convolution_keeps_its_factors_and_is_found_again(options, tmp_path):
    torch.manual_seed(0)
    layer = BlockSparseConv2d(8, 16, block=(4, 2), rank=2, **options)
    layer.mask.view(-1)[::3] = False
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    path = export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 8, 9, 7))
    onnx.checker.check_model(onnx.load(path), full_check=True)
    x = torch.randn(3, 8, 9, 7)
    assert_close(run(path, x), model(x).detach(), "float32", 2 * layer.shape[1])
    loaded = load_model(onnx.load(path))
    for step in pipeline(keep_form):
        step(loaded)
    ops = [read_node(node) for node in loaded.graph if is_dialect(node)]
    assert [op.op_type for op in ops] == ["KroneckerConv"] * layer.groups
    assert {op.weight.block for op in ops} == {(4, 2)}
    assert sum(int(op.weight.support.sum()) for op in ops) == int(layer.support().sum())


def test_metadata_is_a_hint(model, tmp_path):
    path = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 16))
    held = {p.key: p.value for p in onnx.load(path).metadata_props}
    hint = json.loads(held["bscompile.layer.0"])
    assert hint["block"] == [4, 8]
    assert hint["rank"] == 3
    assert hint["live_blocks"] == 6


def test_bad_form_and_unwritable_path(model, tmp_path):
    with pytest.raises(UsageError, match="form: wanted 'factorized' or 'merged', got 'dense'"):
        export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 16), "dense")
    with pytest.raises(StorageError, match="cannot be written"):
        export_onnx(model, tmp_path / "no" / "m.onnx", torch.randn(2, 16))

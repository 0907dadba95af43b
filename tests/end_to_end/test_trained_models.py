"""Train, export, build, run: the artifact knows what torch knew, and every zero block is kept."""

import numpy as np
import pytest
import torch

import bscompile
from bscompile.models import (
    GradualPruning,
    TrainConfig,
    block_sparse_layers,
    export_onnx,
    factorize,
    load,
    train,
)
from bscompile.models.zoo.registry import create
from tests.tolerance import assert_close


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("form", ["factorized", "merged"])
@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("mlp", (8, 8)),
        pytest.param("linear", (2, 8), marks=pytest.mark.slow),
        pytest.param("lenet5", (4, 4), marks=pytest.mark.slow),
        pytest.param("vit-digits", (8, 8), marks=pytest.mark.slow),
        pytest.param("swin-digits", (8, 8), marks=pytest.mark.slow),
    ],
)
def test_artifact_has_torchs_accuracy_and_live_blocks(name, block, form, tmp_path):
    data = load("digits")
    model, dense = create(name, data.features, data.classes, seed=0)
    factorize(model, block, 2, exclude=dense)
    train(model, data, GradualPruning(0.75), TrainConfig(3, 1))
    model.eval()
    with torch.no_grad():
        want = model(data.x_test)
    path = export_onnx(model, tmp_path / "m.onnx", data.x_test[:2], form)
    compiled = bscompile.build(path)
    compiled.save(tmp_path / "m.bsc")
    with bscompile.load(tmp_path / "m.bsc") as artifact:
        got = artifact(data.x_test.numpy())
    assert_close(got, want, "float32", 1024)
    assert np.array_equal(got.argmax(1), want.argmax(1).numpy())
    named = set()
    for layer in compiled.report.to_dict()["layers"]:
        if layer["found"] != "kronecker" or layer["name"] not in dict(block_sparse_layers(model)):
            continue
        trained = model.get_submodule(layer["name"])
        bh, bw = layer["trained_block"]
        rows, cols = layer["shape"][0] // bh, layer["shape"][1] // bw
        live = round(layer["density"] * rows * cols)
        assert (bh, bw) == trained.block
        # Units that no live block reads or writes are removed, with the blocks they had.
        shrunk = (rows, cols) != tuple(trained.mask.shape)
        count = int(trained.support().sum())
        assert live <= count if shrunk else live == count
        named.add(layer["name"])
    if name in ("linear", "mlp") or (name, form) == ("lenet5", "merged"):
        assert named == set(dict(block_sparse_layers(model)))

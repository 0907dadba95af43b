"""Whole models through the whole road: equal to onnxruntime, family by family.

The full matrix (every block, both exporters, full sizes) is ``benchmarks/model_matrix.py``; this is
the part of it that fits a test run.
"""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import bscompile
from bscompile.models import factorize
from tests.end_to_end.families import FAMILIES, WEIGHTS, export, with_weights
from tests.tolerance import assert_close

#: Blocks that a family's static form meets; 16x16 meets all of them, with dynamic shapes at least.
BLOCKS = {"mlp": "32x1", "lenet5": "4x4", "vit": "8x4", "swin": "32x1", "bert": "4x4"}
BLOCKS |= {"llama": "8x4"}
STATIC = [
    (family, weights)
    for family in FAMILIES
    for weights in ("dense", BLOCKS.get(family, "16x16"), "kronecker")
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(family, dynamic, factorized) -> ONNX model, exported once."""
    folder = tmp_path_factory.mktemp("families")
    made = {}

    def get(name, dynamic=False, factorized=False):
        key = (name, dynamic, factorized)
        if key not in made:
            change = {"change": _factorized} if factorized else {}
            path = export(FAMILIES[name], folder / "model.onnx", dynamic=dynamic, **change)
            made[key] = onnx.load(path)
        return made[key]

    return get


def _factorized(module):
    return factorize(module, block=(8, 8), rank=2)


def _feeds(name, batch):
    torch.manual_seed(batch)
    return {k: v.numpy() for k, v in FAMILIES[name].inputs(False, batch).items()}


def _check(model, feeds_list, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    compiled = bscompile.build(path, target="cpu")
    loaded = bscompile.load(compiled.save(tmp_path / "model.bsc"))
    peer = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for feeds in feeds_list:
        want = peer.run(None, feeds)
        got = loaded.run(feeds)
        assert list(got) == [o.name for o in peer.get_outputs()]
        for (key, value), expected in zip(got.items(), want, strict=True):
            # Errors add up over layers: as many as a model of this size has, in quadrature.
            assert_close(value, expected, np.float32, 64 * 64, what=key)
    return compiled.report


@pytest.mark.parametrize(("family", "weights"), STATIC)
def test_static_shapes(exported, family, weights, tmp_path):
    model = with_weights(exported(family), WEIGHTS[weights])
    report = _check(model, [_feeds(family, 2)], tmp_path)
    forms = {layer.form for layer in report.layers}
    if weights == "dense":
        assert forms == {"dense"}
    if weights == "kronecker":
        # Whether they run as factors or as blocks is the cost model's to say.
        recovered = [n for n in report.notes if n.pass_name == "RecoverFactors" and n.applied]
        assert recovered, "no factors were recovered"


# Swin's takes half a minute; test_trained_models.py has one with trained factors.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "swin"])
def test_factorized_export(exported, family, tmp_path):
    model = exported(family, dynamic=True, factorized=True)
    report = _check(model, [_feeds(family, batch) for batch in (1, 3)], tmp_path)
    assert any(layer.rank for layer in report.layers), "no factorized layer was recognised"


@pytest.mark.parametrize("family", FAMILIES)
def test_dynamic_shapes(exported, family, tmp_path):
    model = with_weights(exported(family, dynamic=True), WEIGHTS["16x16"])
    _check(model, [_feeds(family, batch) for batch in (1, 2, 5)], tmp_path)


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_half_precision(family, tmp_path):
    """A ``.half()`` model: float16 at its ends and at rest, float32 in between."""
    feeds = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in _feeds(family, 2).items()
    }
    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
    spec = replace(FAMILIES[family], inputs=lambda full, batch: inputs)
    path = export(spec, tmp_path / "half.onnx", change=lambda module: module.half())
    loaded = bscompile.load(bscompile.build(path).save(tmp_path / "half.bsc"))
    (want,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
    (got,) = loaded.run(feeds).values()
    assert got.dtype == np.float16
    assert_close(got, want, np.float16, 64 * 64)
    large = [spec for spec in loaded.manifest.params if np.prod(spec.shape) > 4096]
    assert {spec.stored for spec in large} == {"float16"}

"""Every way to write a factorized layer in torch, exported, in ONNX Runtime and compiled."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import bscompile
from tests.passes.factorized import SPELLINGS, Factorized, export
from tests.tolerance import assert_close

# Below and above what torch's exporter folds: 8192 elements in, 262144 out.
SIZES = {"small": (64, 48), "large": (768, 1536)}
# The two that the exporters of this project and most people write, in every combination.
CASES = [
    (spelling, size, dynamic)
    for spelling in SPELLINGS
    for size, dynamic in (("small", False), ("small", True), ("large", True), ("large", False))
    if dynamic == (size == "large") or spelling in ("loop", "stacked")
]


@pytest.mark.parametrize(("spelling", "size", "dynamic"), CASES)
def test_runs_in_onnxruntime_and_compiled_with_the_trained_live_blocks(
    spelling, size, dynamic, tmp_path
):
    n, m = SIZES[size]
    module = Factorized(spelling, n, m, (8, 8), 2, density=0.2).eval()
    rows = 6
    model = export(module, (rows, n), dynamic=(0,) if dynamic else ())
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    x = np.random.default_rng(0).standard_normal((rows, n)).astype(np.float32)
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {session.get_inputs()[0].name: x})
    compiled = bscompile.build(path)
    compiled.save(tmp_path / "m.bsc")
    with bscompile.load(tmp_path / "m.bsc") as artifact:
        ours = artifact(x)
    for got in (theirs, ours):
        assert_close(got, want, "float32", 2 * n)
        assert np.array_equal(got.argmax(1), want.argmax(1))
    (layer,) = compiled.report.to_dict()["layers"]
    live = round(layer["density"] * (m // 8) * (n // 8))
    assert tuple(layer["trained_block"]) == (8, 8)
    assert live == int(module.S.sum())

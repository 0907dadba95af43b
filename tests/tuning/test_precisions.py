"""Tuning layers in low precision: candidates are measured, checked and chosen like any other."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bscompile.api import build, tune
from tests.passes.helpers import blocky, model_from


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_model_is_tuned_in_low_precision(dtype, tmp_path):
    proto = model_from(
        "g (float[16, 64] x) => (float[16, 96] y) { y = MatMul(x, w) }",
        {"w": np.ascontiguousarray(blocky((96, 64), (16, 16)).T)},
    )
    model, records = tmp_path / "model.onnx", tmp_path / "records.jsonl"
    onnx.save(proto, model)
    result = tune(model, dtype=dtype, trials=3, database=records)
    assert "1 of 1" in result.headline
    compiled = build(model, dtype=dtype, database=records)
    assert compiled.report.tuned == "1 of 1 layers tuned"
    assert compiled.report.layers[0].dtype == {"bf16": "bfloat16"}.get(dtype, dtype)
    # What was measured in one precision says nothing of another.
    assert build(model, database=records).report.tuned == "0 of 1 layers tuned"

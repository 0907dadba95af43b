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


def test_a_layer_is_estimated_in_low_precision():
    from bscompile import targets
    from bscompile.tuning.estimate import break_even, estimate, random_weight

    context = targets.resolve("cpu:amx", 2)
    weight = random_weight((768, 768), (16, 32), 0.2, 0)
    best = {
        precision: estimate(weight, 128, context, precision=precision)[0]
        for precision in ("float32", "bfloat16", "int8")
    }
    seconds = [entry.expected for entry in best.values()]
    assert seconds == sorted(seconds, reverse=True)
    assert best["bfloat16"].config.startswith("amx")
    assert best["int8"].bytes < best["bfloat16"].bytes < best["float32"].bytes
    assert 0 < break_even(weight, 128, context, "bfloat16") <= 1

"""Transformers whose hidden features were shuffled: recovered, and equal under onnxruntime."""

from __future__ import annotations

import onnxruntime as ort
import pytest

import bscompile
from tests.end_to_end.families import FAMILIES, export
from tests.end_to_end.shuffling import shuffle, zero
from tests.tolerance import assert_close


@pytest.mark.slow
@pytest.mark.parametrize(("family", "heads", "stream"), [("vit", 3, True), ("bert", 4, False)])
def test_a_shuffled_transformer_is_put_in_order(family, heads, stream, tmp_path):
    kind = FAMILIES[family]
    paths = [
        export(kind, tmp_path / f"{name}.onnx", change=change)
        for name, change in (
            ("plain", lambda m: zero(m, 8, 0.2)),
            ("shuffled", lambda m: shuffle(zero(m, 8, 0.2), heads, stream=stream)),
        )
    ]
    feeds = {name: tensor.numpy() for name, tensor in kind.inputs(False, 2).items()}
    plain, wanted = (ort.InferenceSession(str(p)).run(None, feeds)[0] for p in paths)
    assert_close(wanted, plain, "float32", k=512)  # the shuffle itself changes nothing
    expected = bscompile.inspect(paths[0], threads=2).totals()["expected_seconds"]
    compiled = bscompile.build(paths[1], threads=2)
    assert any(n.pass_name == "PermuteFeatures" and n.applied for n in compiled.report.notes)
    assert compiled.report.totals()["expected_seconds"] <= 1.1 * expected
    got = bscompile.load(compiled.save(tmp_path / "model.bsc")).run(feeds)
    assert_close(next(iter(got.values())), wanted, "float32", k=512)

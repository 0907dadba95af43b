"""Transformers whose hidden features were shuffled: recovered, and equal under onnxruntime."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
import torch

import bscompile
from bscompile import targets
from bscompile.dialect import dense_weight, is_dialect, read_node
from bscompile.formats import BlockSparseMatrix
from bscompile.importer import load_model
from bscompile.passes.pipeline import pipeline, run
from bscompile.targets.planner import plan
from tests.end_to_end.families import FAMILIES, Family, export
from tests.end_to_end.shuffling import shuffle, shuffle_fused, zero
from tests.end_to_end.wider import WIDER
from tests.passes.helpers import check_equal
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


ENCODER = Family(
    "encoder",
    lambda full: torch.nn.TransformerEncoderLayer(64, 2, 128, batch_first=True),
    lambda full, batch: {"src": torch.randn(batch, 6, 64)},
)


@pytest.mark.parametrize(("family", "heads"), [(ENCODER, 2), (WIDER["gpt2"], 4)])
def test_shuffled_heads_of_a_fused_projection_are_put_in_order(family, heads, tmp_path):
    """As torch and transformers export it: every live 8x8 block is counted again."""
    path = tmp_path / "m.onnx"
    export(family, path, change=lambda m: shuffle_fused(m, heads, 8))
    context = targets.resolve("cpu", threads=1)

    def price(op, rows, dtype, step=1):
        return plan(op, rows, dtype, context, step)

    def count(orders: bool) -> int:
        model = load_model(onnx.load(path))
        notes = run(model, pipeline(price, "float32", price if orders else None)[:-2])
        assert orders is any(n.pass_name == "PermuteFeatures" and n.applied for n in notes)
        feeds = {k: v.numpy() for k, v in family.inputs(False, 2).items()}
        check_equal(onnx.load(path), model, feeds, 512)
        layers = [read_node(node) for node in model.graph if is_dialect(node)]
        square = [layer.weight for layer in layers if layer.shape == (64, 64)]
        assert len(square) >= 4
        return sum(BlockSparseMatrix.from_dense(dense_weight(w), (8, 8)).nnzb for w in square)

    live = 0.3 * 64 * (8 if family is WIDER["gpt2"] else 4)
    assert count(orders=False) > 1.4 * live
    assert count(orders=True) < 1.3 * live

"""Other orders of hidden features: every plan's layers are measured, and the times decide."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bscompile import targets
from bscompile.compiler import CompileOptions, analyse_model, collect_layers
from bscompile.formats import BlockSparseMatrix
from bscompile.tuner import tune_model
from bscompile.tuning import session
from bscompile.tuning.database import Database
from bscompile.tuning.record import OK
from bscompile.tuning.runner import LocalRunner
from bscompile.tuning.session import TuneOptions
from bscompile.tuning.timing import Bench
from bscompile.tuning.variants import all_variants
from tests.passes.helpers import blocky, dense, model_from
from tests.tuning.conftest import TableMeasurer, layer_of

OPTIONS = CompileOptions(threads=1, buckets=())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two layers in 8x8 blocks whose 256 hidden features were shuffled."""
    order = np.random.default_rng(0).permutation(256)
    text = """g (float[128, 64] x) => (float[128, 64] y) {
        a = MatMul(x, w1)  h = Add(a, b1)  r = Relu(h)  y = MatMul(r, w2)
    }"""
    weights = {
        "w1": blocky((64, 256), (8, 8), 0.15)[:, order],
        "b1": dense(256)[order],
        "w2": blocky((256, 64), (8, 8), 0.15, seed=1)[order],
    }
    path = tmp_path_factory.mktemp("orders") / "model.onnx"
    onnx.save(model_from(text, weights), path)
    return path


class ByOrder(TableMeasurer):
    """One time for layers in blocks, another for those that are as scattered as they came."""

    def __init__(self, blocked, scattered):
        super().__init__(lambda variant: blocked if self.is_in_blocks else scattered)

    @property
    def is_in_blocks(self):
        return in_blocks(self.opened[-1])


def in_blocks(layer):
    """Whether its zeros fill blocks along both axes; shuffled ones do along one."""
    return min(layer.op.weight.block) > 1


def tuned(model, path, monkeypatch, blocked, scattered, **settings):
    measurer = ByOrder(blocked, scattered)
    monkeypatch.setattr(session, "ChildMeasurer", lambda *_: measurer)
    options = TuneOptions(trials=2, **settings)
    found = tune_model(model, OPTIONS, options, Database(path), time_whole=False)
    return found.result, measurer


def notes(model, path):
    options = CompileOptions(threads=1, buckets=(), database=path)
    report = analyse_model(model, options)
    return [n for n in report.notes if n.pass_name == "PermuteFeatures" and "other order" in n.text]


@pytest.mark.parametrize(("blocked", "scattered"), [(1e-5, 4e-5), (4e-5, 1e-5), (1e-5, 1e-5)])
def test_the_measured_times_decide_in_tune_and_in_build(
    model, tmp_path, monkeypatch, blocked, scattered
):
    path = tmp_path / "db.jsonl"
    result, measurer = tuned(model, path, monkeypatch, blocked, scattered)
    assert {in_blocks(layer) for layer in measurer.opened} == {True, False}
    (told,) = result.orders
    assert f"as it was {2e6 * scattered:.1f} us" in told
    assert f"side by side {2e6 * blocked:.1f} us" in told
    pays = blocked < scattered
    (note,) = notes(model, path)
    assert note.applied == pays
    assert f"measured {max(scattered / blocked, 1):.2f} times as fast" in note.text
    assert {min(layer.trained_block) > 1 for layer in result.layers} == {pays}
    assert all(layer.seconds for layer in result.layers)  # nothing is left to tune
    again, asked = tuned(model, path, monkeypatch, 1e-9, 1e-9)
    assert not asked.opened
    assert again.orders == result.orders


def test_plans_of_which_not_all_was_measured_are_left_to_the_cost_model(
    model, tmp_path, monkeypatch
):
    path = tmp_path / "db.jsonl"
    tuned(model, path, monkeypatch, 4e-5, 1e-5)
    keys = {layer.key for layer in collect_layers(model, OPTIONS).layers if not in_blocks(layer)}
    lines = path.read_text().splitlines(keepends=True)
    kept = [r for r in Database(path) if r.key not in keys]
    assert 0 < len(kept) < len(lines)
    path.write_text("".join(f"{record.to_json()}\n" for record in kept))
    (note,) = notes(model, path)
    assert note.applied
    assert "expected" in note.text


def test_a_pattern_without_values_can_be_measured():
    here = targets.resolve("cpu", threads=1)
    mask = blocky((24, 16), (4, 4)) != 0
    for weight in (mask, BlockSparseMatrix.from_dense(mask, (4, 4))):
        layer = layer_of(weight, here)
        bench = Bench(
            layer.op, 16, layer.dtype, 16, here.target, here.hardware, LocalRunner()
        )  # fmt: skip
        variant = all_variants(layer)[0]
        (result,) = bench.measure([(variant, here.target.template(variant.template))], 1, None)
        assert result.status == OK
        assert 0 < result.error < 1e-5  # some value was not zero

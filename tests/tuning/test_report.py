"""The page: well formed, complete, and nothing is loaded from elsewhere."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from bscompile.dialect import LinearOp
from bscompile.report.svg import Scale, heat_map, spanning
from bscompile.report.tuning_page import tuning_page
from bscompile.tuning.database import Database
from bscompile.tuning.measurer import Layer, Measurement
from bscompile.tuning.record import TIMEOUT
from bscompile.tuning.search import LayerSearch, SearchOptions
from bscompile.tuning.session import LayerOutcome
from bscompile.tuning.summary import TuningResult, WholeModel, sparsity_map, summarise
from tests.tuning.conftest import TableMeasurer, block_sparse, kronecker, layer_of


def outcome(layer, answer=lambda v: v.expected * 1.2, trials=12):
    best = LayerSearch(layer, [TableMeasurer(answer)], Database(), SearchOptions(trials)).run()
    return LayerOutcome(layer, best, tuned_now=True)


@pytest.fixture
def result(context):
    dense = block_sparse().to_dense()
    layers = [
        layer_of(block_sparse(), context, name="encoder.<b>&fc1"),
        layer_of(kronecker(), context, name="factors"),
        Layer(LinearOp("dense", dense), None, np.dtype(np.float32), context),
    ]
    found = [outcome(layer) for layer in layers]
    hung = all_but_dense = layer_of(block_sparse(seed=3), context, name="trouble")
    found.append(
        outcome(hung, lambda v: 1e-4 if v.form == "dense" else Measurement(TIMEOUT, detail="no"))
    )
    found.append(LayerOutcome(all_but_dense, None, tuned_now=True))
    orders = ("fc1: another order of 64 features; execution blocks: fc1 8x8 9 > 3; fc2 8x8 8 > 2",)
    return TuningResult("db.jsonl", (), summarise(found), orders=orders)


def test_the_summary_adds_up(result):
    first = result.layers[0]
    assert first.winner.startswith("block_sparse")
    assert first.seconds < first.dense_seconds
    assert first.model_seconds >= first.seconds
    assert sum(first.statuses.values()) == 12 == len(first.trials)
    assert {p.form for p in first.curve} >= {"dense", "block_sparse"}
    assert result.layers[3].winner == "dense"
    assert result.layers[3].statuses["timeout"] == 11
    assert result.layers[4].seconds is None
    assert result.headline == "4 of 5 distinct problems tuned, 4 of them now"
    assert "sparsity" not in result.to_dict()["layers"][0]


def test_the_page_needs_nothing_else(result, hardware):
    page = tuning_page(result, hardware)
    assert "<script" not in page
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)|url\(|@import|https?:", page)
    assert "encoder.&lt;b&gt;&amp;fc1" in page
    assert "<b>" not in page
    tags = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta",):
                tags.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert tags.pop() == tag

    Checker().feed(page.removeprefix("<!doctype html>"))
    assert tags == []


def test_the_plots_are_well_formed_and_marked(result, hardware):
    page = tuning_page(result, hardware)
    drawings = re.findall(r"<svg.*?</svg>", page)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
        assert "inf" not in drawing
    # Curve, convergence, roofline and map of the sparse two; no curve where nothing is drawn.
    assert len(drawings) == 4 + 4 + 2 + 3
    assert page.count("trained block") == 2
    assert "no candidate" in page.lower()
    circles = re.findall(r'c[xy]="([-\d.]+)"', page)
    assert all(0 <= float(value) <= 560 for value in circles)


@pytest.mark.parametrize(
    ("peer", "said"), [(4e-3, "2.00 times as fast"), (1e-3, "it LOSES: 0.50 times as fast")]
)
def test_the_whole_model_and_its_losses_are_told(result, hardware, peer, said):
    slow = dataclasses.replace(result.layers[0], seconds=2.0, dense_seconds=1.0)
    whole = WholeModel(2e-3, peer)
    found = dataclasses.replace(result, layers=(slow, *result.layers[1:]), whole=whole)
    page = tuning_page(found, hardware)
    assert said in page
    assert "no form is as fast as dense for encoder.&lt;b&gt;&amp;fc1" in page
    assert found.to_dict()["whole"] == {"seconds": 2e-3, "onnxruntime_seconds": peer}
    assert found.to_dict()["losses"] == ["encoder.<b>&fc1"]
    assert result.losses == ()


def test_orders_of_features_are_told_with_the_blocks_of_each_layer(result, hardware):
    page = tuning_page(result, hardware)
    assert "<p>fc1: another order of 64 features.</p>" in page
    assert "<li>fc1 8x8 9 &gt; 3</li><li>fc2 8x8 8 &gt; 2</li>" in page


def test_the_roofline_is_that_of_the_precision(result, hardware):
    narrow = dataclasses.replace(result.layers[0], precision="bfloat16")
    machine = dataclasses.replace(hardware, peak_gflops={"float32": 50.0, "bfloat16": 100.0})
    page = tuning_page(dataclasses.replace(result, layers=(narrow,)), machine)
    assert "bfloat16 peak 200 GFLOP/s" in page
    assert "float32 peak" not in page


def test_a_page_without_layers(hardware):
    page = tuning_page(TuningResult("db", (), ()), hardware)
    assert "0 of 0 distinct problems" in page


def test_scales():
    assert Scale(1, 100, log=True).place(10) == pytest.approx(0.5)
    assert Scale(0, 4).place(1) == 0.25
    assert Scale(2, 2).place(2) == 0.5
    for scale in (spanning([3.0]), spanning([1.0, 1e6], log=True), spanning([5.1, 5.2], log=True)):
        ticks = scale.ticks()
        assert 2 <= len(ticks) <= 20
        assert all(scale.low <= t <= scale.high for t in ticks)


def test_the_sparsity_map_keeps_every_share():
    weight = block_sparse(shape=(1600, 64), block=(8, 8))
    cells = np.array(sparsity_map(weight))
    assert cells.shape == (96, 8)
    mask = weight.mask()
    sizes = [len(part) for part in np.array_split(mask, 96)]
    assert (cells * np.array(sizes)[:, None]).sum() == pytest.approx(mask.sum())
    drawing = ElementTree.fromstring(heat_map([[0.0, 1.0], [0.2, 0.0]], "map"))
    squares = "".join(path.get("d") for path in drawing.iter() if path.get("d"))
    assert squares.count("M") == 2

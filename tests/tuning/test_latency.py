"""The latency that a choice of block is charged."""

import pytest

from bscompile.tuning.estimate import estimate, random_weight
from bscompile.tuning.latency import layer_latency
from tests.tuning.conftest import TableMeasurer


def test_it_is_that_of_the_best_form_by_the_cost_model(context):
    said = []
    latency = layer_latency(context, 32, 0.25, progress=said.append)
    for block in ((4, 4), (16, 8)):
        forms = estimate(random_weight((128, 64), block, 0.25, 2), 32, context)
        assert latency((128, 64), block, 2) == min(form.expected for form in forms)
    assert latency((128, 64), (4, 4), 2) < latency((1024, 1024), (4, 4), 2)
    assert said[0] == "[128, 64] in 4x4 blocks"
    assert len(said) == 3  # each layer is looked at once


def test_measured_times_come_first(context):
    measurer = TableMeasurer(lambda v: 3e-6 if v.label == "block_sparse 8x8" else 5e-6)
    latency = layer_latency(context, 32, 0.25, measurer)
    assert latency((128, 64), (8, 8), 2) == pytest.approx(3e-6)

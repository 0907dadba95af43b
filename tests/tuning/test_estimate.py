"""Layers that nobody has trained: sizes, refusals, numbers that follow from one another."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.errors import UsageError
from bscompile.tuning.estimate import break_even, estimate, random_weight
from bscompile.tuning.measurer import Measurement
from bscompile.tuning.record import CRASHED
from tests.tuning.conftest import TableMeasurer


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.25, 1.0])
def test_the_weight_is_as_dense_as_asked(rank, density):
    weight = random_weight((64, 48), (8, 8), density, rank)
    assert weight.density == pytest.approx(density, abs=0.02)
    assert weight.shape == (64, 48)
    assert weight.block == (8, 8)
    assert getattr(weight, "rank", 0) == rank


def test_blocks_that_do_not_divide_are_padded_or_refused():
    assert random_weight((65, 47), (8, 8), 0.5, 0).shape == (65, 47)
    with pytest.raises(UsageError, match="8x8 in 65x47"):
        random_weight((65, 47), (8, 8), 0.5, 1)
    with pytest.raises(UsageError, match="0 to 1"):
        random_weight((64, 48), (8, 8), 1.5, 0)
    with pytest.raises(UsageError, match="positive"):
        random_weight((0, 48), (8, 8), 0.5, 0)


def test_without_measuring_it_is_the_cost_model(context):
    found = estimate(random_weight((256, 128), (8, 8), 0.1, 2), 64, context)
    dense = next(e for e in found if e.label == "dense")
    assert dense.speedup == 1
    assert all(e.measured is None for e in found)
    assert [e.expected for e in found] == sorted(e.expected for e in found)
    assert all(e.speedup == pytest.approx(dense.expected / e.expected) for e in found)
    assert {e.label.split()[0] for e in found} == {"dense", "block_sparse", "kronecker"}
    assert found[0].speedup > 1


def test_measured_times_decide_and_failures_fall_back(context):
    times = {"dense": 4e-5, "block_sparse 8x8": 1e-5}
    failed = Measurement(CRASHED, detail="no")
    measurer = TableMeasurer(lambda v: times.get(v.label, failed))
    found = estimate(random_weight((256, 128), (8, 8), 0.1, 0), 64, context, measurer=measurer)
    by_label = {e.label: e for e in found}
    assert by_label["block_sparse 8x8"].measured == 1e-5
    assert by_label["block_sparse 8x8"].speedup == pytest.approx(4)
    assert by_label["dense"].speedup == 1
    assert by_label["block_sparse 4x4"].measured is None
    assert len(measurer.opened) == 1


def test_break_even_lies_where_the_costs_meet(context):
    weight = random_weight((256, 256), (16, 16), 0.1, 0)
    limit = break_even(weight, 64, context)
    assert 0.2 < limit <= 1
    assert break_even(np.ones((16, 16), np.float32), 64, context) == 0.0
    below = estimate(random_weight((256, 256), (16, 16), 0.8 * limit, 0), 64, context)
    assert below[0].label != "dense"

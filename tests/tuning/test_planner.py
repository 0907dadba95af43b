"""What a build takes from a database: tuned forms, or the cost model's where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.dialect import form_of
from bscompile.dialect.forms import in_form
from bscompile.targets.planner import plan
from bscompile.tuning.database import Database
from bscompile.tuning.planner import TunedPlanner
from bscompile.tuning.record import TuningRecord, Variant
from bscompile.tuning.variants import all_variants
from tests.tuning.conftest import block_sparse, kronecker, layer_of


def tuned(layer, winner, seconds=1e-6):
    """A database in which ``winner`` has won."""
    dense = next(v for v in all_variants(layer) if v.form == "dense")
    database = Database()
    for variant, time in ((dense, 1e-4), (winner, seconds)):
        database.add([TuningRecord(layer.key, variant, "ok", (time,), 1e-7, final=True, run="1")])
    return database


def ask(database, layer):
    planner = TunedPlanner(database, layer.context)
    return planner(layer.op, layer.rows, layer.dtype), planner


@pytest.mark.parametrize("weight", [block_sparse(), kronecker()])
def test_every_winner_becomes_the_choice(context, weight):
    layer = layer_of(weight, context)
    kinds = {v.label: v for v in all_variants(layer)}
    for winner in kinds.values():
        choice, planner = ask(tuned(layer, winner), layer)
        assert choice.tuned
        assert form_of(choice.weight) == winner.form
        assert (choice.template, dict(choice.config)) == (winner.template, dict(winner.config))
        dense = choice.weight if winner.form == "dense" else choice.weight.to_dense()
        np.testing.assert_array_equal(dense, layer.op.weight.to_dense())
        assert planner.used == [layer.key]
        if winner.form != "dense":
            assert choice.weight.block == winner.block
            assert choice.seconds == 1e-6
            assert "100.00 times as fast as dense" in choice.reason
        assert choice.dense_seconds in (1e-4, choice.seconds)


def test_an_unknown_layer_is_planned_by_cost(context):
    layer = layer_of(block_sparse(), context)
    choice, planner = ask(Database(), layer)
    expected = plan(layer.op, layer.rows, layer.dtype, context)
    assert not choice.tuned
    assert (choice.template, dict(choice.config)) == (expected.template, dict(expected.config))
    assert planner.used == []


@pytest.mark.parametrize(
    "winner",
    [
        Variant("block_sparse", (8, 8), "no_such_template", {"rows": 1}),
        Variant("block_sparse", (8, 8), "block_sparse_outputs", {"rows": 10**6, "tasks": 2}),
        Variant("kronecker", (8, 8), "kronecker", {"rows": 8}),  # the weight has no factors
        Variant("block_sparse", (8, 0), "block_sparse_outputs", {}),
    ],
)
def test_a_record_that_no_template_would_offer_is_not_believed(context, winner):
    layer = layer_of(block_sparse(), context)
    choice, _ = ask(tuned(layer, winner), layer)
    assert not choice.tuned


def test_a_form_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no kronecker form in 2x2"):
        in_form(np.ones((4, 4), np.float32), "kronecker", (2, 2))
    with pytest.raises(ValueError, match="no kronecker form in 4x4"):
        in_form(kronecker(), "kronecker", (4, 4))

"""The search itself, with a table in place of a machine."""

from __future__ import annotations

import pytest

from bscompile.targets.base import problem_of
from bscompile.tuning import session
from bscompile.tuning.collect import Collector
from bscompile.tuning.database import Database
from bscompile.tuning.measurer import Measurement
from bscompile.tuning.record import CRASHED, OK, TIMEOUT, WRONG
from bscompile.tuning.search import LayerSearch, SearchOptions
from bscompile.tuning.session import TuneOptions, tune_layers
from bscompile.tuning.space import Space, parameters
from bscompile.tuning.variants import all_variants, worth_trying
from tests.tuning.conftest import TableMeasurer, block_sparse, kronecker, layer_of


def search(layer, answer, database=None, trials=12, **options):
    measurer = TableMeasurer(answer)
    database = Database() if database is None else database
    best = LayerSearch(layer, [measurer], database, SearchOptions(trials, **options)).run()
    return best, measurer, database


@pytest.fixture
def layer(context):
    return layer_of(kronecker(), context)


def test_every_form_is_a_candidate(layer):
    variants = all_variants(layer)
    assert {v.form for v in variants} == {"dense", "block_sparse", "kronecker"}
    assert len({v.block for v in variants}) > 4
    assert [v.expected for v in variants] == sorted(v.expected for v in variants)
    assert len(set(variants)) == len(variants)


def test_the_cost_model_prunes_but_keeps_dense(layer):
    variants = all_variants(layer)
    kept = worth_trying(variants)
    assert 1 < len(kept) < len(variants)
    assert kept[0] == variants[0]
    assert any(v.form == "dense" for v in kept)
    assert worth_trying([]) == []


def test_the_space_finds_every_candidate_back(layer):
    import optuna

    space = Space(worth_trying(all_variants(layer)))
    for variant in space.variants:
        fixed = optuna.trial.FixedTrial(parameters(variant))
        assert space.suggest(fixed) == variant
        assert space.find(variant) == variant


def test_the_search_finds_the_fastest(layer):
    goal = worth_trying(all_variants(layer))[-1]  # what the cost model likes least
    best, measurer, _ = search(layer, lambda v: 1e-6 if v == goal else 1e-4, trials=1000)
    assert best.winner.variant == goal
    assert len({v for v, _ in measurer.asked}) == len(worth_trying(all_variants(layer)))


def test_no_candidate_is_tried_twice_and_trials_are_honoured(layer):
    _, measurer, database = search(layer, lambda v: 1e-4, trials=9)
    trials = [v for v, rounds in measurer.asked if rounds == 5]
    assert len(trials) == len(set(trials)) == 9
    assert sum(not r.final for r in database) == 9


def test_dense_is_always_measured_and_meets_the_finalists(layer):
    best, measurer, database = search(layer, lambda v: 1e-4, trials=2)
    assert measurer.asked[0][0].form == "dense"
    finals = [r for r in database if r.final]
    assert "dense" in {r.variant.form for r in finals}
    assert best.winner.variant.form == "dense"  # all are equally fast


@pytest.mark.parametrize("status", [WRONG, CRASHED, TIMEOUT])
def test_what_misbehaves_is_recorded_and_never_chosen(layer, status):
    bad = all_variants(layer)[0]
    best, _, database = search(
        layer, lambda v: Measurement(status, detail="because") if v == bad else 1e-4
    )
    assert best.winner.variant != bad
    (record,) = [r for r in database if r.variant == bad]
    assert (record.status, record.detail) == (status, "because")


def test_a_finalist_that_breaks_in_the_final_is_out(layer):
    flaky = all_variants(layer)[0]
    calls = []

    def answer(variant):
        calls.append(variant)
        if variant != flaky:
            return 1e-4 if variant.form == "dense" else 2e-4
        return 1e-6 if calls.count(flaky) == 1 else Measurement(CRASHED, detail="late")

    best, _, _ = search(layer, answer)
    assert best.winner.variant.form == "dense"


def test_nothing_right_means_nothing_chosen(layer):
    best, _, database = search(layer, lambda v: Measurement(WRONG, detail="all"), trials=5)
    assert best is None
    assert {r.status for r in database} == {WRONG}


def test_equal_seeds_try_the_same(layer):
    tried = [search(layer, lambda v: v.expected, seed=3)[1].asked for _ in range(2)]
    assert tried[0] == tried[1]


def test_a_neighbour_shows_the_way(context):
    first, second = (layer_of(block_sparse(seed=s), context) for s in (0, 1))
    goal = worth_trying(all_variants(first))[-1]

    def answer(variant):
        return 1e-6 if variant.identity == goal.identity else 1e-4

    _, _, database = search(first, answer, trials=1000)
    best, measurer, _ = search(second, answer, database, trials=12)
    assert best.winner.variant == goal
    assert len([v for v, rounds in measurer.asked if rounds == 5]) == 3  # a quarter of 12


def test_ctrl_c_keeps_everything_and_the_next_run_goes_on(layer, tmp_path):
    path = tmp_path / "db.jsonl"
    count = iter(range(100))

    def answer(variant):
        if next(count) == 4:
            raise KeyboardInterrupt
        return 1e-4 if variant.form == "dense" else 1e-5

    with pytest.raises(KeyboardInterrupt):
        search(layer, answer, Database(path), trials=9, run="1")
    kept = Database(path)
    assert len(kept) == 4
    assert kept.best(layer.key).winner.time == 1e-5
    _, measurer, _ = search(layer, lambda v: 1e-4, kept, trials=9, run="2")
    assert len([v for v, rounds in measurer.asked if rounds == 5]) == 5
    assert not {v for v, rounds in measurer.asked if rounds == 5} & {
        r.variant for r in kept if r.run == "1"
    }


def test_several_measurers_share_the_work(layer):
    measurers = [TableMeasurer(lambda v: 1e-4) for _ in range(3)]
    database = Database()
    LayerSearch(layer, measurers, database, SearchOptions(9)).run()
    trials = [[v for v, rounds in m.asked if rounds == 5] for m in measurers]
    assert [len(t) for t in trials] == [3, 3, 3]
    assert len({v for t in trials for v in t}) == 9


# ---------------------------------------------------------------- whole models


@pytest.fixture
def table(monkeypatch):
    """Replaces the child process; the test sees every measurer that was made."""
    made = []

    def make(*_arguments):
        made.append(TableMeasurer(lambda v: 1e-4 if v.form == "dense" else 1e-5))
        return made[-1]

    monkeypatch.setattr(session, "ChildMeasurer", make)
    return made


def test_equal_problems_are_tuned_once(context, table):
    collect = Collector(context)
    weight = block_sparse()
    for name, factor in (("a", 1), ("b", 2), ("c", 3)):
        twin = type(weight)(weight.values * factor, weight.indices, weight.indptr, weight.shape)
        layer = layer_of(twin, context, name=name)
        collect(layer.op, layer.rows, layer.dtype)
    (layer,) = collect.layers
    assert (layer.op.name, layer.uses) == ("a", 3)
    (outcome,) = tune_layers(collect.layers, Database(), TuneOptions(trials=4))
    assert outcome.tuned_now
    assert len(table[0].opened) == 1
    assert table[0].closed


def test_a_warm_database_tunes_nothing(context, table):
    layers = [layer_of(block_sparse(), context), layer_of(kronecker(), context)]
    database = Database()
    tune_layers(layers, database, TuneOptions(trials=4))
    size, made = len(database), len(table)
    outcomes = tune_layers(layers, database, TuneOptions(trials=4))
    assert (len(database), len(table)) == (size, made)
    assert [outcome.tuned_now for outcome in outcomes] == [False, False]
    assert all(outcome.best.winner.variant.form != "dense" for outcome in outcomes)


def test_large_layers_come_first_and_time_runs_out(context, table, monkeypatch):
    small = layer_of(block_sparse(), context, rows=1, name="small")
    large = layer_of(block_sparse(), context, rows=512, name="large")
    seen = []
    options = TuneOptions(trials=4, timeout=1e-9)
    outcomes = tune_layers([small, large], Database(), options, seen.append)
    assert table[0].opened == []
    assert [outcome.best for outcome in outcomes] == [None, None]
    tune_layers([small, large], Database(), TuneOptions(trials=4), seen.append)
    assert [progress.layer for progress in seen[::4]] == ["large", "small"]
    assert seen[-1].seconds_left == 0
    assert (seen[-1].number, seen[-1].total, seen[-1].trial) == (2, 2, 4)
    assert seen[-1].roofline > 0
    assert seen[-1].best.status == OK


def test_a_search_without_time_still_meets_the_cost_model_s_choice(context):
    """A layer that was only timed dense when time ran out would run dense ever after."""
    layer = layer_of(block_sparse(), context)
    favourite = worth_trying(all_variants(layer))[0]
    assert favourite.form != "dense"

    def answer(variant):
        return 1e-4 if variant.form == "dense" else 1e-5

    best, measurer, _ = search(layer, answer, expired=lambda: True)
    assert [v for v, rounds in measurer.asked if rounds == 5][1:] == [favourite]
    assert best.winner.variant == favourite


def test_dense_alone_wins_nothing_where_the_search_was_stopped(layer):
    count = iter(range(100))

    def answer(variant):
        if next(count) == 1:
            raise KeyboardInterrupt
        return 1e-4

    database = Database()
    with pytest.raises(KeyboardInterrupt):
        search(layer, answer, database)
    assert [record.variant.form for record in database] == ["dense"]
    assert database.best(layer.key) is None


def test_a_failure_closes_the_measurers(context, monkeypatch):
    broken = TableMeasurer(lambda v: 1 / 0)
    monkeypatch.setattr(session, "ChildMeasurer", lambda *_: broken)
    with pytest.raises(ZeroDivisionError):
        tune_layers([layer_of(block_sparse(), context)], Database(), TuneOptions(trials=4))
    assert broken.closed


def test_the_roofline_counts_the_form_that_runs(context):
    from bscompile.tuning.roofline import flops, roofline_seconds, traffic_bytes

    sparse = layer_of(block_sparse(), context)
    dense = layer_of(block_sparse().to_dense(), context)
    assert flops(dense.problem) == 2 * 16 * 64 * 48
    assert flops(sparse.problem) == 2 * 16 * block_sparse().values.size
    assert traffic_bytes(dense.problem) == 4 * (64 * 48 + 16 * (64 + 48))
    assert roofline_seconds(dense.problem, context.hardware) == pytest.approx(
        max(2 * 16 * 64 * 48 / 100e9, traffic_bytes(dense.problem) / 100e9)
    )
    factors = problem_of(layer_of(kronecker(), context).op, 16, sparse.dtype)
    live = int(kronecker().support.sum())
    assert flops(factors) == 2 * 16 * 2 * min(48 * 8 + live * 8, live * 8 + 64 * 8)

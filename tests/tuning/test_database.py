"""Records survive: round trips, damage, other machines, two writers, unions."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest

from bscompile.dialect import LinearOp
from bscompile.errors import StorageError
from bscompile.targets import get_target, resolve
from bscompile.tuning import keys
from bscompile.tuning.database import Database, choose, default_path, read_database
from bscompile.tuning.record import TuningRecord, Variant
from tests.tuning.conftest import block_sparse, kronecker, layer_of

DENSE = Variant("dense", (1, 1), "dense", {"rows": 4, "width": 16, "tasks": 2}, 2e-5)
SPARSE = Variant("block_sparse", (8, 8), "block_sparse_outputs", {"rows": 4, "split": "rows"}, 1e-5)
OTHER = Variant("block_sparse", (16, 8), "block_sparse_outputs", {"rows": 2, "split": "rows"}, 3e-5)


@pytest.fixture
def key(context):
    return layer_of(block_sparse(), context).key


def record(key, variant=SPARSE, seconds=(1e-5,), status="ok", **more):
    return TuningRecord(key, variant, status, seconds if status == "ok" else (), **more)


def test_a_record_is_one_line_and_comes_back_equal(key):
    before = record(key, error=1e-7, detail="", final=True, run="r1", seconds=(1e-5, 2e-5))
    line = before.to_json()
    assert "\n" not in line
    after = TuningRecord.from_json(line)
    assert after == before
    assert after.key.digest == key.digest
    assert after.variant.config == SPARSE.config


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b: b.pop("key"), "key"),
        (lambda b: b.update(format=99), "another format"),
        (lambda b: b.update(status="fine"), "status must be"),
        (lambda b: b.update(seconds=[-1.0]), "positive"),
        (lambda b: b.update(seconds=[float("nan")]), "positive"),
        (lambda b: b.update(seconds=[]), "has a time"),
        (lambda b: b["variant"].update(config={"rows": [1]}), "numbers and words"),
        (lambda b: b["key"]["problem"].pop("n"), "missing"),
        (lambda b: b["variant"].update(block=[1, 2, 3]), "unpack"),
    ],
)
def test_a_broken_record_is_refused_with_the_reason(key, change, reason):
    body = json.loads(record(key).to_json())
    change(body)
    with pytest.raises(ValueError, match=reason):
        TuningRecord.from_json(json.dumps(body))


def test_records_persist(tmp_path, key):
    path = tmp_path / "deep" / "db.jsonl"
    assert Database(path).add([record(key), record(key, DENSE), record(key)]) == 2
    again = Database(path)
    assert len(again) == 2
    assert again.damaged == []
    assert {r.variant for r in again.of(key)} == {SPARSE, DENSE}
    assert again.add([record(key)]) == 0
    assert len(path.read_text().splitlines()) == 2


def test_damaged_lines_are_reported_and_skipped(tmp_path, key):
    path = tmp_path / "db.jsonl"
    whole = record(key).to_json()
    # A line broken off by a power cut, noise, bytes that are no text, an empty line.
    content = f"{whole[:40]}\nnoise\n".encode() + b"\xff\xfe\n\n[1]\nnull\n" + whole.encode()
    path.write_bytes(content)
    database = Database(path)
    assert len(database) == 1
    assert len(database.damaged) == 5
    assert database.damaged[0].startswith(f"{path}:1: skipped")
    # The file ends without a line feed: the next record must not grow into the last one.
    database.add([record(key, DENSE)])
    assert len(Database(path)) == 2


def test_merging_is_a_union(tmp_path, key):
    one, two = Database(tmp_path / "one"), Database(tmp_path / "two")
    one.add([record(key), record(key, DENSE)])
    two.add([record(key, DENSE), record(key, OTHER)])
    assert one.merge(two) == 1
    assert one.merge(two) == 0
    assert {r.variant for r in Database(tmp_path / "one").of(key)} == {SPARSE, DENSE, OTHER}
    assert len(two) == 2
    assert len(read_database(tmp_path / "one")) == 3


def _append(path, first, key_line):
    database = Database(path)
    key = TuningRecord.from_json(key_line).key
    for number in range(50):
        config = {"rows": first + number, "text": "x" * 500}
        database.add([record(key, replace(DENSE, config=config))])


def test_two_processes_may_write_at_once(tmp_path, key):
    path = tmp_path / "db.jsonl"
    line = record(key).to_json()
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_append, args=(path, 100 * i, line)) for i in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    database = Database(path)
    assert database.damaged == []
    assert len(database) == 100


def test_places_that_cannot_be_used_are_named(tmp_path, key):
    with pytest.raises(StorageError, match="cannot be read"):
        Database(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    database = Database(tmp_path / "new")
    database.path = blocked / "db"
    with pytest.raises(StorageError, match="cannot be written"):
        database.add([record(key)])


def test_the_default_place_follows_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path() == tmp_path / "bscompile" / "tuning.jsonl"


# ---------------------------------------------------------------- keys


def test_a_record_of_other_hardware_or_code_is_never_applied(context, monkeypatch):
    database = Database()
    layer = layer_of(block_sparse(), context)
    database.add([record(layer.key, DENSE, (2e-5,)), record(layer.key)])
    assert database.best(layer.key).winner.variant == SPARSE
    for change in ({"name": "other"}, {"cores": 4}, {"cache_bytes": (1 << 15, 1 << 21)}):
        elsewhere = replace(context, hardware=replace(context.hardware, **change))
        key = layer_of(block_sparse(), elsewhere).key
        assert database.best(key) is None
        assert database.nearest(key) == []
    monkeypatch.setattr(keys, "code_version", lambda target: "another")
    assert database.best(layer_of(block_sparse(), context).key) is None


def test_keys_tell_apart_what_changes_the_time_and_nothing_else(context):
    weight = block_sparse()
    base = layer_of(weight, context).key
    other_values = replace(weight, values=weight.values * 2)
    assert layer_of(other_values, context).key.digest == base.digest
    assert layer_of(other_values, context, name="other").key.digest == base.digest
    different = [
        layer_of(block_sparse(seed=1), context),
        layer_of(weight, context, rows=17),
        layer_of(weight, context, rows=None),
        layer_of(weight, context, epilogue=()),
        layer_of(weight.to_dense(), context),
        layer_of(kronecker(), context),
        layer_of(kronecker(rank=3), context),
    ]
    digests = {layer.key.digest for layer in different} | {base.digest}
    assert len(digests) == len(different) + 1


def test_open_rows_are_tuned_per_bucket(context):
    weight = block_sparse()
    many = layer_of(weight, replace(context, typical_rows=1024), rows=None).key
    assert many.digest != layer_of(weight, context, rows=None).key.digest
    fixed = layer_of(weight, replace(context, typical_rows=1024), rows=16).key
    assert fixed.digest == layer_of(weight, context, rows=16).key.digest


def test_the_code_version_is_stable_and_follows_every_source_of_the_kernels(monkeypatch):
    digested = []
    monkeypatch.setattr(keys, "_digest", lambda packages: digested.append(set(packages)))
    for name in ("cpu", "opencl", "webgpu", "cuda", "hexagon", "systolic"):
        keys.code_version(get_target(name))
    shared = "bscompile.targets.kernels"
    assert digested == [
        {shared, "bscompile.targets.cpu"},
        {shared, "bscompile.targets.opencl", "bscompile.targets.gpu.kernels"},
        {shared, "bscompile.targets.webgpu", "bscompile.targets.gpu.kernels"},
        {shared, "bscompile.targets.cuda", "bscompile.targets.cuda.kernels"},
        {shared, "bscompile.targets.hexagon"},
        {shared, "bscompile.targets.systolic"},
    ]
    monkeypatch.undo()
    packages = (shared, "bscompile.targets.cpu")
    assert keys._digest(packages) == keys._digest.__wrapped__(packages)


@pytest.mark.parametrize("target", ["opencl:any", "webgpu", "hexagon", "cpu:aarch64-sve"])
def test_a_key_names_the_device_that_measured(target, monkeypatch):
    """Code for any device of a kind is timed on one, or under one emulated processor."""
    context = resolve(target, 1)
    op, float32 = LinearOp("layer", block_sparse()), np.dtype(np.float32)
    digests = set()
    for device in ("one", "another"):
        if context.target.loader == "native":
            monkeypatch.setenv("QEMU_CPU", device)
        else:
            here = replace(context.target, measured_on=lambda device=device: device)
            context = replace(context, target=here)
        key = keys.key_of(op, 8, float32, context)
        assert key.hardware.endswith(f", {device}")
        digests.add(key.digest)
    assert len(digests) == 2


def test_a_device_is_not_named_twice(context):
    here = replace(context.target, measured_on=lambda: context.hardware.name)
    key = layer_of(block_sparse(), replace(context, target=here)).key
    assert key.hardware == layer_of(block_sparse(), context).key.hardware


# ---------------------------------------------------------------- choosing


def test_the_fastest_candidate_wins(key):
    best = choose([record(key, DENSE, (2e-5,)), record(key), record(key, OTHER, (9e-6,))])
    assert best.winner.variant == OTHER
    assert best.dense.variant == DENSE


def test_dense_wins_ties(key):
    best = choose([record(key, DENSE, (1e-5,)), record(key, SPARSE, (0.99e-5,))])
    assert best.winner.variant == DENSE


def test_nothing_is_chosen_that_did_not_meet_the_dense_form(key):
    assert choose([record(key), record(key, OTHER)]) is None
    mixed = [record(key, DENSE, (2e-5,), run="1"), record(key, SPARSE, run="2")]
    assert choose(mixed) is None  # each run timed one of them alone


def test_finalists_count_before_trials_and_new_runs_before_old(key):
    trials = [record(key, DENSE, (2e-5,), run="1"), record(key, SPARSE, (1e-6,), run="1")]
    final = [
        record(key, DENSE, (2e-5,), run="1", final=True),
        record(key, OTHER, (1e-5,), run="1", final=True),
    ]
    assert choose([*trials, *final]).winner.variant == OTHER
    newer = [
        record(key, DENSE, (2e-5,), run="2", final=True),
        record(key, SPARSE, (1.5e-5,), run="2", final=True),
    ]
    assert choose([*newer, *trials, *final]).winner.variant == SPARSE


@pytest.mark.parametrize("status", ["wrong", "crashed", "timeout"])
def test_what_was_ever_unsafe_is_never_chosen(key, status):
    records = [record(key, DENSE, (2e-5,)), record(key), record(key, status=status)]
    assert choose(records).winner.variant == DENSE


def test_the_nearest_layers_come_first(context):
    database = Database()
    near = layer_of(block_sparse(seed=1), context).key
    far = layer_of(block_sparse(seed=1), context, rows=256).key
    for key in (far, near):
        database.add([record(key, DENSE, (2e-5,)), record(key)])
    found = database.nearest(layer_of(block_sparse(), context).key)
    assert [best.winner.key for _, best in found] == [near, far]
    assert database.nearest(layer_of(kronecker(), context).key) == []

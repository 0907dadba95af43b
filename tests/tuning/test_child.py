"""The worker process: right kernels are timed; crashes, hangs and wrong results are survived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bscompile import targets
from bscompile.tuning.child import ChildMeasurer
from bscompile.tuning.compiled import CompiledKernels
from bscompile.tuning.database import Database
from bscompile.tuning.record import CRASHED, OK, TIMEOUT, WRONG
from bscompile.tuning.runner import LocalRunner
from bscompile.tuning.search import LayerSearch, SearchOptions
from bscompile.tuning.timing import Bench
from bscompile.tuning.variants import all_variants
from tests.tuning.conftest import block_sparse, kronecker, layer_of, with_templates
from tests.tuning.templates import Misbehaving


@pytest.fixture(scope="module")
def here():
    return targets.resolve("cpu", threads=2)


@pytest.fixture(scope="module")
def measurer():
    child = ChildMeasurer(seconds=60)
    yield child
    child.close()


def variant_of(layer, template):
    return next(v for v in all_variants(layer) if v.template == template)


@pytest.mark.parametrize(
    ("weight", "epilogue"),
    [
        (block_sparse(), ("bias", "gelu", "residual")),
        (kronecker(), ()),
        (block_sparse().to_dense(), ("bias", "relu")),
    ],
)
def test_each_form_is_built_checked_and_timed(measurer, here, weight, epilogue):
    layer = layer_of(weight, here, rows=None, epilogue=epilogue)
    measurer.open(layer)
    kinds = {v.form: v for v in reversed(all_variants(layer))}
    results = measurer.measure(list(kinds.values()), rounds=3)
    assert [r.status for r in results] == [OK] * len(kinds), results
    assert all(len(r.seconds) == 3 and 0 < min(r.seconds) < 0.1 for r in results)
    assert all(r.error is not None and r.error < 1e-5 for r in results)


def test_factors_in_float_and_merged_in_int8_each_meet_their_own_meaning(measurer, here):
    layer = replace(layer_of(kronecker(), here), dtype=np.dtype(np.int8))
    measurer.open(layer)
    kinds = {v.form: v for v in reversed(all_variants(layer))}
    assert set(kinds) == {"kronecker", "block_sparse", "dense"}
    results = measurer.measure(list(kinds.values()), rounds=1)
    assert [r.status for r in results] == [OK] * len(kinds), results
    assert all(r.error is not None and r.error < 1e-5 for r in results)


def test_what_is_hopeless_is_not_timed_well(measurer, here):
    layer = layer_of(block_sparse(), here)
    measurer.open(layer)
    (result,) = measurer.measure(all_variants(layer)[:1], rounds=9, give_up=1e-12)
    assert result.status == OK
    assert len(result.seconds) == 5


@pytest.mark.parametrize(
    ("how", "status", "detail"),
    [
        ("wrong", WRONG, "differs from float64"),
        ("nan", WRONG, "not numbers"),
        ("raises", CRASHED, "RuntimeError: no such tile"),
        ("crashes", CRASHED, "signal 11"),
    ],
)
def test_misbehaviour_is_told_and_survived(measurer, here, how, status, detail):
    layer = layer_of(block_sparse(), with_templates(here, Misbehaving(how)))
    measurer.open(layer)
    (result,) = measurer.measure([variant_of(layer, f"dense_{how}")])
    assert result.status == status
    assert detail in result.detail
    (after,) = measurer.measure([variant_of(layer, "dense")])
    assert after.status == OK


def test_a_candidate_that_hangs_is_ended(here):
    layer = layer_of(block_sparse(), with_templates(here, Misbehaving("hangs")))
    child = ChildMeasurer(seconds=1)
    try:
        child.open(layer)
        child.measure([])  # starts the process, so that its start is not counted below
        process = child._process
        begun = time.monotonic()
        (result,) = child.measure([variant_of(layer, "dense_hangs")])
        assert result.status == TIMEOUT
        assert "longer than 1 s" in result.detail
        assert time.monotonic() - begun < 20
        assert process.poll() is not None
    finally:
        child.close()


def test_a_search_survives_what_misbehaves(measurer, here):
    bad = [Misbehaving("crashes"), Misbehaving("wrong")]
    layer = layer_of(block_sparse(), with_templates(here, *bad))
    database = Database()
    best = LayerSearch(layer, [measurer], database, SearchOptions(trials=5)).run()
    statuses = {r.variant.template: r.status for r in database}
    assert statuses["dense_crashes"] == CRASHED
    assert statuses["dense_wrong"] == WRONG
    assert best.winner.status == OK
    assert best.winner.variant.template not in ("dense_crashes", "dense_wrong")


def test_the_child_ends_with_its_parent():
    code = (
        "import sys, time; from bscompile.tuning import child\n"
        "c = child.ChildMeasurer(); c._start(1)\n"
        "print(c._process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the child outlived its parent")


@pytest.mark.slow
def test_ctrl_c_in_a_real_tuning(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from bscompile import targets\n"
        "from bscompile.tuning.database import Database\n"
        "from bscompile.tuning.session import TuneOptions, tune_layers\n"
        "from tests.tuning.conftest import kronecker, layer_of\n"
        "here = targets.resolve('cpu', threads=2)\n"
        "watch = lambda progress: print(progress.trial, flush=True)\n"
        "options = TuneOptions(trials=1000, jobs=2)\n"
        "tune_layers([layer_of(kronecker(), here)], Database(sys.argv[1]), options, watch)\n"
    )
    path = tmp_path / "db.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.stdout.readline().strip() != "3":
        assert process.poll() is None
    children = set(_children(process.pid))
    assert len(children) == 2
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=30)
    assert complaints.strip().splitlines()[-1] == "KeyboardInterrupt"
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)
    database = Database(path)
    assert database.damaged == []
    assert len(database) >= 3


def _children(pid):
    """Process ids; each thread lists those that it has started."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def test_layers_that_differ_in_their_pattern_share_their_code(here):
    compiled, calls = CompiledKernels(), []

    def compile_kernel(func, hardware):
        calls.append(func)
        return here.target.compile_kernel(func, hardware)

    counting = replace(here.target, compile_kernel=compile_kernel)
    for seed, rows in ((0, 16), (1, 16), (1, 17)):
        layer = layer_of(block_sparse(seed), here, rows=rows)
        bench = Bench(
            layer.op, rows, layer.dtype, rows, counting, here.hardware, LocalRunner(),
            compiled=compiled,
        )  # fmt: skip
        variant = variant_of(layer, "block_sparse_outputs")
        (result,) = bench.measure([(variant, here.target.template(variant.template))], 1, None)
        assert result.status == OK
    assert len(calls) == 2  # the pattern is data, the number of rows is code

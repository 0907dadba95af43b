"""Measuring behind a TVM RPC tracker, here on the same machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from bscompile import targets
from bscompile.errors import TargetError, UsageError
from bscompile.tuning.child import ChildMeasurer
from bscompile.tuning.database import Database
from bscompile.tuning.record import OK, WRONG
from bscompile.tuning.runner import RpcRunner, parse_tracker
from bscompile.tuning.session import TuneOptions, tune_layers
from bscompile.tuning.variants import all_variants
from tests.tuning.conftest import block_sparse, layer_of, with_templates
from tests.tuning.templates import Misbehaving

_SERVERS = """
import sys
from tvm import rpc
from tvm.rpc.tracker import Tracker
if __name__ == "__main__":
    tracker = Tracker(host="127.0.0.1", port=19190, port_end=19290)
    servers = [
        rpc.Server(
            host="127.0.0.1", port=19300, port_end=19400, key=key,
            tracker_addr=("127.0.0.1", tracker.port),
        )
        for key in ("board", "board")
    ]
    print(tracker.port, flush=True)
    sys.stdin.readline()
    servers[-1].terminate()
    print("one less", flush=True)
    sys.stdin.read()
"""


def test_the_tracker_is_named_by_host_and_port():
    assert parse_tracker(None, None) is None
    assert parse_tracker("host:9190", "board") == RpcRunner("host", 9190, "board")
    for text in ("host", "host:", ":1", "host:x", "host:²"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            parse_tracker(text, "board")
    with pytest.raises(UsageError, match="--key"):
        parse_tracker("host:1", None)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """(process, port) of a tracker with two devices.

    The process ends one of them after a line of input.
    """
    pytest.importorskip("tornado")
    script = tmp_path_factory.mktemp("rpc") / "servers.py"
    script.write_text(_SERVERS)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process, int(process.stdout.readline())
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers would outlive it
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def tracker(processes):
    return processes[1]


@pytest.mark.slow
def test_candidates_are_measured_on_the_device(tracker):
    here = targets.resolve("cpu", threads=1)
    layer = layer_of(block_sparse(), with_templates(here, Misbehaving("wrong")))
    variants = {v.template: v for v in all_variants(layer)}
    with pytest.raises(TargetError, match=r"no device under 'nothing' \(it has board\)"):
        RpcRunner("127.0.0.1", tracker, "nothing").check()
    runner = RpcRunner("127.0.0.1", tracker, "board")
    runner.check()
    measurer = ChildMeasurer(60, runner)
    try:
        measurer.open(layer)
        for name, status in (("dense", OK), ("dense_wrong", WRONG), ("block_sparse_outputs", OK)):
            (result,) = measurer.measure([variants[name]], rounds=3)
            assert result.status == status, result
        results = measurer.measure([variants["dense"], variants["block_sparse_outputs"]], rounds=3)
        assert [r.status for r in results] == [OK, OK], results
    finally:
        measurer.close()


@pytest.mark.slow
def test_two_devices_share_the_work_and_one_may_die(processes):
    process, port = processes
    layer = layer_of(block_sparse(), targets.resolve("cpu", threads=1))
    runner, database = RpcRunner("127.0.0.1", port, "board"), Database()
    free, over = [], threading.Event()

    def look():
        from tvm import rpc

        tracker = rpc.connect_tracker("127.0.0.1", port)
        while not over.wait(0.02):
            free.append(int(tracker.summary()["queue_info"]["board"]["free"]))

    def watch(progress):
        if progress.trial == 4:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "one less\n"
            free.append(-1)

    onlooker = threading.Thread(target=look)
    onlooker.start()
    try:
        options = TuneOptions(trials=8, jobs=2, runner=runner)
        (outcome,) = tune_layers([layer], database, options, watch)
    finally:
        over.set()
        onlooker.join()
    while_two = free[: free.index(-1)]
    assert max(while_two) == 2
    assert min(while_two) == 0  # both were lent at once
    statuses = [record.status for record in database if not record.final]
    assert len(statuses) == 8
    assert statuses[:4] == [OK] * 4
    assert statuses.count(OK) >= 6  # at most what the dead device was measuring is lost
    failed = {record.variant for record in database if record.status != OK}
    assert outcome.best.winner.variant not in failed


def test_a_tracker_that_is_not_there_is_named():
    with pytest.raises(TargetError, match=r"no RPC tracker answers at 127\.0\.0\.1:1 "):
        RpcRunner("127.0.0.1", 1, "board").check()
    layer = layer_of(block_sparse(), targets.resolve("cpu", threads=1))
    with pytest.raises(TargetError, match="no RPC tracker answers"):
        tune_layers([layer], Database(), TuneOptions(runner=RpcRunner("127.0.0.1", 1, "board")))

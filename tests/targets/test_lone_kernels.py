"""Kernels that TVM's runtime does not reach, measured as the tuner does it."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile import targets
from bscompile.dialect import LinearOp
from bscompile.dialect.precision import PRECISIONS, in_precision
from bscompile.errors import TargetError
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import problem_of
from bscompile.tuning.database import Database
from bscompile.tuning.measurer import Layer
from bscompile.tuning.record import OK, WRONG, Variant
from bscompile.tuning.runner import LocalRunner, RpcRunner
from bscompile.tuning.session import TuneOptions, tune_layers
from bscompile.tuning.timing import Bench
from tests.targets.adapters import adapters

#: (target, precision)
MEASURED = [
    ("opencl", "float32"),
    ("webgpu", "float32"),
    ("systolic", "int8"),
    ("hexagon", "int8"),
    ("cpu:aarch64-dotprod", "int8"),
]


def context_of(target):
    known = {adapter.target: adapter for adapter in adapters()}
    adapter = known.get(target) or known[target.partition("-")[0]]
    if reason := adapter.missing():
        pytest.skip(reason)
    return targets.resolve(target, 1)


def layer(block=16, side=128, density=0.1):
    """Block-sparse with a live block in each row and column of blocks."""
    count = side // block
    rng = np.random.default_rng(0)
    live = (rng.random((count, count)) < density) | np.eye(count, dtype=bool)
    weight = rng.standard_normal((side, side)) * np.kron(live, np.ones((block, block)))
    matrix = BlockSparseMatrix.from_dense(weight.astype(np.float32), (block, block))
    return LinearOp("layer", matrix, ("bias",))


def best(context, op, precision, form, block):
    """The form's cheapest candidate by cost model."""
    op = op if form == "block_sparse" else op.with_weight(op.weight.to_dense())
    problem = problem_of(in_precision(op, PRECISIONS[precision]), 5, PRECISIONS[precision])
    found = [
        (template.cost(problem, config, context.hardware), template.name, config, template)
        for template in context.target.templates
        for config in template.space(problem, context.hardware)[:1]
    ]
    _, name, config, template = min(found, key=lambda one: one[:2])
    return Variant(form, block, name, config), template


@pytest.mark.parametrize(("target", "precision"), MEASURED)
def test_candidates_are_checked_and_measured(target, precision):
    context, op = context_of(target), layer()
    bench = Bench(
        op, 5, PRECISIONS[precision], 128, context.target, context.hardware, LocalRunner()
    )
    candidates = [
        best(context, op, precision, "dense", (1, 1)),
        best(context, op, precision, "block_sparse", (16, 16)),
    ]
    dense, sparse = bench.measure(candidates, rounds=1, give_up=None)
    assert (dense.status, sparse.status) == (OK, OK), (dense.detail, sparse.detail)
    if context.target.counts:  # not a matter of what else the machine does
        assert len(sparse.seconds) == 1
        assert sparse.seconds[0] < dense.seconds[0]
        (again,) = bench.measure(candidates[1:], rounds=1, give_up=None)
        # But for the few instructions by which an allocator aligns what the system gave it.
        assert again.seconds == pytest.approx(sparse.seconds, rel=1e-3)
    wanted = bench._wanted
    bench._wanted = lambda form: wanted(form) + 1
    (wrong,) = bench.measure(candidates[1:], rounds=1, give_up=None)
    assert wrong.status == WRONG


@pytest.mark.parametrize(("target", "trained", "runs"), [("systolic:16", 8, 16)])
def test_cycles_choose_the_execution_block(target, trained, runs, tmp_path):
    """The whole way: a worker process that compiles, simulates and answers."""
    context_of("systolic")
    context = targets.resolve(target, 1)
    tuned = Layer(layer(trained), 5, PRECISIONS["int8"], context)
    database = Database(tmp_path / "tuning.jsonl")
    (outcome,) = tune_layers([tuned], database, TuneOptions(trials=4, candidate_seconds=60))
    assert outcome.best is not None
    assert outcome.best.winner.variant.label == f"block_sparse {runs}x{runs}"
    array = next(t for t in context.target.templates if t.name == "array_block_sparse")
    problem = tuned.problem
    assert outcome.best.winner.time <= array.cost(problem, {"array": 16}, context.hardware)


def test_refusals(monkeypatch):
    emulated = Layer(layer(), 5, PRECISIONS["float32"], targets.resolve("cpu:aarch64"))
    with pytest.raises(TargetError) as caught:
        tune_layers([emulated], Database(), TuneOptions())
    assert str(caught.value) == (
        "instructions are counted for one thread, not for 4 (give --threads 1, here and to build)"
    )
    simulated = Layer(layer(), 5, PRECISIONS["int8"], targets.resolve("systolic", 1))
    with pytest.raises(TargetError, match="not tuned behind a tracker"):
        tune_layers([simulated], Database(), TuneOptions(runner=RpcRunner("host", 1, "key")))
    monkeypatch.setenv("PATH", "")
    alone = Layer(layer(), 5, PRECISIONS["float32"], targets.resolve("cpu:riscv64", 1))
    with pytest.raises(TargetError, match="apt-get install qemu-user"):
        tune_layers([alone], Database(), TuneOptions())
    unseen = Layer(layer(), 5, PRECISIONS["float32"], targets.resolve("metal"))
    with pytest.raises(TargetError, match="target metal cannot time single kernels"):
        tune_layers([unseen], Database(), TuneOptions())

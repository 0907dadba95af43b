"""The planner: what it chooses, why, and that it counts re-blocked candidates rightly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bscompile.dialect import LinearOp
from bscompile.dialect.precision import in_precision, precision_of
from bscompile.errors import TargetError
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets import get_target
from bscompile.targets.base import HardwareSpec, TargetContext
from bscompile.targets.planner import count_blocks, plan

FLOAT = np.dtype(np.float32)
PEAKS = {"float32": 118.0, "int8": 472.0}  # of one core with VNNI


@pytest.fixture(scope="module")
def context():
    """A fixed machine, so that choices do not depend on where the test runs."""
    hardware = HardwareSpec(
        name="a machine",
        isa="avx512",
        features=(),
        cores=2,
        peak_gflops={"float32": 118.0, "int8": 118.0},
        memory_gbps=30.0,
        cache_bytes=(32 << 10, 1 << 20, 32 << 20),
        cache_gbps=(197.0, 112.0, 99.0),
        vector_bytes=64,
        launch_seconds=3e-6,
    )
    return TargetContext(get_target("cpu"), "avx512", hardware)


def block_sparse(shape, block, density):
    rng = np.random.default_rng(0)
    live = rng.random((shape[0] // block[0], shape[1] // block[1])) < density
    mask = np.kron(live, np.ones(block, np.float32))
    return BlockSparseMatrix.from_dense(mask, block)


@pytest.mark.parametrize("wanted", [(4, 4), (8, 4), (16, 16), (4, 8), (2, 4), (1, 16)])
def test_counted_blocks_are_the_blocks_built(wanted):
    matrix = block_sparse((48, 64), (4, 4), 0.2)
    live = np.stack([matrix.row_ids.astype(np.int64), matrix.indices.astype(np.int64)])
    count = count_blocks(live, matrix.block, wanted)
    assert count == BlockSparseMatrix.from_dense(matrix.to_dense(), wanted).nnzb


def test_no_blocks_are_counted_in_an_empty_matrix():
    assert count_blocks(np.zeros((2, 0), np.int64), (4, 4), (8, 8)) == 0


@pytest.mark.parametrize("weight", [np.ones((10, 84)), block_sparse((16, 64), (16, 16), 0.5)])
def test_a_layer_of_one_piece_wakes_no_second_worker(context, weight):
    if isinstance(weight, np.ndarray):
        weight = weight.astype(np.float32)
    choice = plan(LinearOp("layer", weight), 1, FLOAT, context)
    assert choice.config["tasks"] == 1


def test_a_sparse_layer_runs_sparse(context):
    weight = block_sparse((3072, 768), (16, 16), 0.1)
    choice = plan(LinearOp("layer", weight), 128, FLOAT, context)
    assert choice.weight is weight
    assert choice.template == "block_sparse_outputs"
    assert choice.seconds < choice.dense_seconds / 4
    assert "10 % of the 16x16 blocks are live" in choice.reason
    seconds = [cost for _, cost in choice.considered]
    assert seconds == sorted(seconds)
    assert {"dense", "block-sparse 16x16", "block-sparse 32x16"} <= {
        n for n, _ in choice.considered
    }


def test_a_nearly_full_layer_stays_dense_and_says_at_what_density_it_would_not(context):
    weight = block_sparse((768, 768), (4, 4), 0.97)
    choice = plan(LinearOp("layer", weight), 128, FLOAT, context)
    assert choice.template == "dense"
    np.testing.assert_array_equal(choice.weight, weight.to_dense())
    assert choice.reason.startswith("stays dense: 97 % of the 4x4 blocks are live, break-even is")
    limit = int(choice.reason.split()[-2])
    sparser = block_sparse((768, 768), (4, 4), limit / 100 - 0.05)
    assert plan(LinearOp("layer", sparser), 128, FLOAT, context).template != "dense"


def test_flat_blocks_are_split_or_merged_when_that_is_faster(context):
    weight = block_sparse((3072, 768), (128, 16), 0.1)
    choice = plan(LinearOp("layer", weight), 128, FLOAT, context)
    assert isinstance(choice.weight, BlockSparseMatrix)
    assert choice.weight.block != weight.block
    np.testing.assert_array_equal(choice.weight.to_dense(), weight.to_dense())
    assert "runs block-sparse in" in choice.reason


def test_a_factorized_layer_runs_factorized(context):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((1, 96, 384)) * (rng.random((96, 384)) < 0.1)
    weight = KroneckerSum(a.astype(np.float32), np.ones((1, 8, 8), np.float32))
    choice = plan(LinearOp("layer", weight, ("bias", "gelu")), None, FLOAT, context)
    assert choice.weight is weight
    assert choice.template == "kronecker"
    assert "factorized, rank 1" in choice.reason
    assert {"dense", "block-sparse 8x8"} <= {name for name, _ in choice.considered}


def test_a_high_rank_is_merged(context):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((16, 96, 384)) * (rng.random((96, 384)) < 0.1)
    weight = KroneckerSum(a.astype(np.float32), np.ones((16, 8, 8), np.float32))
    choice = plan(LinearOp("layer", weight), 128, FLOAT, context)
    assert isinstance(choice.weight, BlockSparseMatrix)


@pytest.mark.parametrize(("rank", "form"), [(1, "kronecker"), (8, "block_sparse")])
def test_factors_meet_the_merged_weight_in_int8(context, rank, form):
    """Factors have no int8 form: they run in float32 where that is faster, and only there."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rank, 96, 384)) * (rng.random((96, 384)) < 0.1)
    weight = KroneckerSum(a.astype(np.float32), np.ones((rank, 8, 8), np.float32))
    op = LinearOp("layer", weight)
    narrow = replace(context.hardware, features=("avx512_vnni",), peak_gflops=PEAKS)
    context = replace(context, hardware=narrow)
    choice = plan(op, 128, np.dtype(np.int8), context)
    assert choice.form == form
    assert {f"factorized 8x8 rank {rank}", "block-sparse 8x8"} <= dict(choice.considered).keys()
    stored = in_precision(op.with_weight(choice.weight), np.dtype(np.int8))
    assert precision_of(stored) == (np.float32 if form == "kronecker" else np.int8)
    in_float = plan(op, 128, FLOAT, context)
    if form == "kronecker":
        assert choice.seconds == in_float.seconds
        gain = dict(choice.considered)["block-sparse 8x8"] / choice.seconds
        assert "rank 1, in float32: " in choice.reason
        assert f"{gain:.1f} times as merged in int8" in choice.reason
    else:
        assert choice.seconds < in_float.seconds


def test_a_dense_layer_stays_dense(context):
    weight = np.ones((64, 32), np.float32)
    choice = plan(LinearOp("layer", weight), 128, FLOAT, context)
    assert choice.weight is weight
    assert choice.reason == "stays dense: its weight has no zero blocks"
    assert choice.seconds == choice.dense_seconds


def test_a_dtype_without_a_kernel_is_refused(context):
    op = LinearOp("layer 7", np.ones((64, 32), np.float16))
    with pytest.raises(TargetError, match="layer 7: target cpu:avx512 has no kernel for float16"):
        plan(op, 128, np.dtype(np.float16), context)


def test_more_rows_never_cost_less(context):
    weight = block_sparse((768, 768), (8, 8), 0.2)
    costs = [plan(LinearOp("layer", weight), m, FLOAT, context).seconds for m in (1, 16, 128, 1024)]
    assert costs == sorted(costs)
    typical = plan(LinearOp("layer", weight), None, FLOAT, replace(context, typical_rows=1024))
    assert typical.seconds == pytest.approx(costs[-1], rel=0.2)


@pytest.mark.parametrize(("core", "form"), [(math.inf, "dense"), (20.0, "block_sparse")])
def test_small_blocks_pay_where_one_core_draws_little_of_the_memory(context, core, form):
    """Reading half of the weight saves much, unless one core is thought to read like all."""
    hardware = replace(
        context.hardware,
        cores=1,
        memory_gbps=80.0,
        core_memory_gbps=core,
        cache_bytes=(32 << 10, 64 << 10, 256 << 10),
    )
    op = LinearOp("layer", block_sparse((1024, 1024), (4, 4), 0.7))
    assert plan(op, 1, FLOAT, replace(context, hardware=hardware)).form == form


def test_tasks_share_what_the_memory_gives(context):
    hardware = replace(context.hardware, core_memory_gbps=20.0)
    assert [hardware.memory_rate(tasks) for tasks in (1, 1.25, 2, 8)] == [20, 25, 30, 30]
    assert context.hardware.memory_rate(1) == 30


@pytest.mark.parametrize(("rows", "template"), [(128, "outputs"), (1024, "rows")])
def test_an_input_larger_than_the_reach_of_addresses_is_read_in_order(context, rows, template):
    """BERT's second feed-forward layer: 1.6 MB of x for one sequence, 12 MB for eight."""
    op = LinearOp("layer", block_sparse((768, 3040), (16, 16), 0.1))
    assert plan(op, rows, FLOAT, context).template == f"block_sparse_{template}"


def test_weights_of_all_tasks_share_the_last_cache(context):
    """48 MB read by two tasks, 24 MB each, come from memory where the cache has 32 MB."""
    op = LinearOp("layer", np.ones((6144, 2048), np.float32))
    seconds = plan(op, 1, FLOAT, context).seconds
    assert seconds > 0.9 * op.weight.nbytes / (context.hardware.memory_gbps * 1e9)

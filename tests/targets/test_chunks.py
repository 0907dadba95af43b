"""Weights from memory, a chunk of columns at a time: the packing, the kernels, and when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bscompile.dialect import LinearOp
from bscompile.dialect.precision import PRECISIONS
from bscompile.targets.base import problem_of
from bscompile.targets.kernels.chunks import column_chunks
from bscompile.targets.kernels.packing import first_inputs, pack_block_rows, stacked
from tests.targets.narrow_running import template
from tests.targets.running import MACHINES
from tests.targets.test_kernels import block_sparse, check
from tests.targets.test_narrow_kernels import check as check_narrow
from tests.targets.test_narrow_kernels import on

# shape, block, density: blocks that divide nothing, empty rows, none alive, all, low ones
# several inputs of which fill a register, and more chunks than columns of blocks.
CASES = [
    ((67, 50), (4, 4), 0.4),
    ((65, 47), (16, 8), 0.3),
    ((30, 77), (3, 5), 1.0),
    ((20, 90), (8, 8), 0.0),
    ((130, 9), (2, 4), 0.6),
]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize(("shape", "block", "density"), CASES)
def test_stacked_chunks_hold_each_block_once(shape, block, density, chunks, rng):
    matrix = block_sparse(rng, shape, block, density)
    stack = stacked(matrix, chunks)
    assert stack.block_rows == chunks * matrix.block_rows
    tall = stack.to_dense().reshape(chunks, -1, shape[1])[:, : shape[0]]
    np.testing.assert_array_equal(tall.sum(axis=0), matrix.to_dense())
    width = -(-matrix.block_cols // chunks) * block[1]
    for chunk, part in enumerate(tall):
        others = np.arange(shape[1]) // width != chunk
        assert not part[:, others].any()


def test_starts_take_half_the_bytes_where_k_allows(rng):
    starts = np.array([0, (1 << 16) - 1])
    assert first_inputs(starts, 1 << 16).dtype == np.uint16
    assert first_inputs(starts, (1 << 16) + 1).dtype == np.int32
    weight = block_sparse(rng, (8, 12), (4, 4), 1.0)
    assert dict(pack_block_rows(weight, 1))["starts"].dtype == np.uint16
    assert dict(pack_block_rows(weight, 1, wide=True))["starts"].dtype == np.int32


def first_config(name, op, m, precision, hardware, **changes):
    space = template(name).space(problem_of(op, m, PRECISIONS[precision]), hardware)
    config = next(c for c in space if c["rows"] == m and c["tasks"] == changes["tasks"])
    return {**config, "split": "outputs", **changes}


@pytest.mark.parametrize(
    ("spec", "case"), [*((MACHINES[0], case) for case in CASES), (MACHINES[-1], CASES[0])]
)
def test_sums_of_chunks(spec, case, rng):
    """Also of several rows, and by two tasks."""
    name, (m, tasks) = "block_sparse_outputs", ((1, 2), (2, 1))[CASES.index(case) % 2]
    op = LinearOp("layer", block_sparse(rng, *case), ("bias", "relu"))
    config = first_config(name, op, m, "float32", spec.hardware, tasks=tasks, chunks=3)
    check(spec, name, op, m, rng, config)


@pytest.mark.parametrize(
    ("precision", "features", "case"),
    [
        *(("bfloat16", ("avx512_bf16",), case) for case in CASES),
        *(("int8", ("avx512_vnni",), case) for case in CASES[:2]),
        ("int8", (), CASES[1]),
    ],
)
def test_narrow_sums_of_chunks(precision, features, case, rng):
    hardware = on("avx512", features)
    m, tasks = ((2, 2), (1, 1))[CASES.index(case) % 2]
    op = LinearOp("layer", block_sparse(rng, *case), ("bias", "residual"))
    config = first_config("narrow", op, m, precision, hardware, tasks=tasks, chunks=2)
    check_narrow(op, precision, hardware, "narrow", m, rng, config)


@pytest.mark.parametrize(
    ("changes", "chunks"),
    [
        ({}, 4),
        ({"k": 2048}, 1),  # all of x stays beside the weights
        ({"m": 8}, 1),  # a tile of one row does not read the weights once
        ({"m": None}, 1),
        ({"nnzb": 7168 * 8}, 1),  # block rows so short that their ends would cost more
        ({"block": (16, 16), "nnzb": 91_750}, 1),  # x is a sixteenth of what is read
        ({"n": 512, "nnzb": 26_000}, 1),  # weights that a cache holds
    ],
)
def test_columns_are_cut_where_x_would_leave_the_nearest_cache(changes, chunks, rng):
    hardware = replace(MACHINES[0].hardware, cache_bytes=(32 << 10, 1 << 20, 32 << 20))
    op = LinearOp("layer", block_sparse(rng, (8, 8), (4, 4), 1.0))
    usual = {"m": 1, "n": 28672, "k": 8192, "nnzb": 1_468_000}
    problem = replace(problem_of(op, 1, np.dtype(np.float32)), **{**usual, **changes})
    assert column_chunks(problem, hardware, 1, 4)[0] == chunks
    template_ = template("block_sparse_outputs")
    if problem.m == 1:
        best = template_.space(problem, replace(hardware, cores=1))[0]
        assert best["chunks"] == chunks

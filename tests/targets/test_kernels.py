"""One numeric suite for all kernel templates: forms, blocks, densities, odd sizes, epilogues."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.dialect import TENSOR_STEPS, LinearOp, evaluate
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import problem_of
from tests.targets.running import MACHINES, run_kernel, templates
from tests.tolerance import assert_close

EPILOGUES = [
    (),
    ("bias",),
    ("bias", "relu"),
    ("bias", "gelu", "residual"),
    ("bias", "residual", "gelu_tanh"),
    ("silu", "bias"),
]
BLOCKS = [
    (1, 1), (1, 4), (2, 2), (4, 4), (8, 4), (4, 8), (8, 8), (16, 16), (32, 1), (1, 16),
    (12, 7), (64, 64),
]  # fmt: skip
SHAPES = [(48, 64), (65, 47), (130, 33), (10, 84)]


def block_sparse(rng, shape, block, density):
    out, inner = shape
    bh, bw = block
    live = rng.random((-(-out // bh), -(-inner // bw))) < density
    if density < 1:
        live[0] = False  # an empty block row
    mask = np.kron(live, np.ones(block, bool))[:out, :inner]
    weight = (rng.standard_normal(shape) * mask).astype(np.float32)
    return BlockSparseMatrix.from_dense(weight, block)


def epilogue_tensors(rng, epilogue, m, n):
    shapes = {"bias": (n,), "residual": (m, n)}
    return tuple(
        rng.standard_normal(shapes[s]).astype(np.float32) for s in epilogue if s in TENSOR_STEPS
    )


def check(machine, name, op, m, rng, symbolic=False, config=None):
    n, k = op.shape
    x = rng.standard_normal((m, k)).astype(np.float32)
    tensors = epilogue_tensors(rng, op.epilogue, m, n)
    got = run_kernel(machine, name, op, x, tensors, symbolic=symbolic, config=config)
    assert_close(got, evaluate(op, x, tensors), np.float32, k, what=f"{name} {op.shape} m={m}")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 5), (3, 1), (7, 16), (96, 800)])
@pytest.mark.parametrize("m", [1, 9, 33])
def test_dense(machine, shape, m, rng):
    weight = rng.standard_normal(shape).astype(np.float32)
    check(machine, "dense", LinearOp("layer", weight, ("bias", "relu")), m, rng)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", templates("block_sparse"))
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_block_sparse_blocks(machine, name, block, density, rng):
    turn = BLOCKS.index(block) + int(10 * density)  # each block meets two of the shapes
    for i in (turn, turn + 1):
        shape, m = SHAPES[i % 4], (33, 9, 8, 2)[i % 4]
        weight = block_sparse(rng, shape, block, density)
        check(machine, name, LinearOp("layer", weight, ("bias",)), m, rng)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["dense", *templates("block_sparse")])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(machine, name, epilogue, rng):
    weight = block_sparse(rng, (67, 50), (4, 8), 0.4)
    op = LinearOp("layer", weight.to_dense() if name == "dense" else weight, epilogue)
    for m in (1, 18):
        check(machine, name, op, m, rng)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["dense", *templates("block_sparse")])
def test_symbolic_rows(machine, name, rng):
    weight = block_sparse(rng, (67, 50), (4, 8), 0.4)
    epilogue = ("bias", "residual", "relu")
    op = LinearOp("layer", weight.to_dense() if name == "dense" else weight, epilogue)
    for m in (1, 2, 7, 8, 9, 33, 70):
        check(machine, name, op, m, rng, symbolic=True)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["dense", *templates("block_sparse")])
def test_every_configuration(machine, name, rng):
    weight = block_sparse(rng, (67, 50), (4, 8), 0.4)
    op = LinearOp("layer", weight.to_dense() if name == "dense" else weight, ("bias",))
    template = machine.template(name)
    problem = problem_of(op, 37, np.dtype(np.float32))
    space = template.space(problem, machine.hardware)
    assert space
    assert len({tuple(c.items()) for c in space}) == len(space)
    for config in space:
        check(machine, name, op, 37, rng, config=config)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["dense", *templates("block_sparse")])
def test_every_weight_counts(machine, name, rng):
    """A negative control: any one weight changed changes the result."""
    weight = block_sparse(rng, (20, 13), (4, 4), 0.5)
    x = rng.standard_normal((3, 13)).astype(np.float32)

    def run(matrix):
        op = LinearOp("layer", matrix.to_dense() if name == "dense" else matrix)
        return run_kernel(machine, name, op, x)

    before = run(weight)
    for index in rng.choice(weight.values.size, 5, replace=False):
        values = weight.values.copy()
        if values.flat[index] == 0:
            continue  # beyond the edge of the true shape
        values.flat[index] += 1
        changed = BlockSparseMatrix(values, weight.indices, weight.indptr, weight.shape)
        assert np.abs(run(changed) - before).max() > 1e-3

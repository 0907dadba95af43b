"""One numeric suite for all kernel templates: forms, blocks, densities, odd sizes, epilogues."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bscompile.dialect import TENSOR_STEPS, LinearOp, evaluate
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets.base import problem_of
from tests.targets.running import MACHINES, build_kernel, templates
from tests.tolerance import assert_close

EPILOGUES = [
    (),
    ("bias",),
    ("bias", "relu"),
    ("bias", "gelu", "residual"),
    ("bias", "residual", "gelu_tanh"),
    ("silu", "bias"),
    ("hard_swish", "residual", "clip:-0.5:6.0"),
    ("leaky_relu:0.1", "hard_sigmoid:0.2:0.5"),
]
ALL = ["dense", *templates("block_sparse"), "kronecker"]
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


def kronecker(rng, shape, block, rank, density):
    (out, inner), (bh, bw) = shape, block
    support = rng.random((out // bh, inner // bw)) < density
    if density < 1:
        support[0] = False
    a = rng.standard_normal((rank, *support.shape)) * support
    b = rng.standard_normal((rank, bh, bw))
    return KroneckerSum(a.astype(np.float32), b.astype(np.float32))


def layer(rng, name, epilogue=()):
    """A layer of odd size for the named template."""
    if name == "kronecker":
        return LinearOp("layer", kronecker(rng, (66, 50), (6, 5), 2, 0.4), epilogue)
    weight = block_sparse(rng, (67, 50), (4, 8), 0.4)
    return LinearOp("layer", weight.to_dense() if name == "dense" else weight, epilogue)


def epilogue_tensors(rng, epilogue, m, n):
    shapes = {"bias": (n,), "residual": (m, n)}
    return tuple(
        rng.standard_normal(shapes[s]).astype(np.float32) for s in epilogue if s in TENSOR_STEPS
    )


def check(machine, name, op, m, rng, config=None):
    check_run(build_kernel(machine, name, op, m, config), name, op, m, rng)


def check_run(run, name, op, m, rng):
    n, k = op.shape
    x = rng.standard_normal((m, k)).astype(np.float32)
    tensors = epilogue_tensors(rng, op.epilogue, m, n)
    want = evaluate(op, x, tensors)
    assert_close(run(x, tensors), want, np.float32, k, what=f"{name} {op.shape} m={m}")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 5), (3, 1), (7, 16), (96, 800)])
@pytest.mark.parametrize("m", [1, 9, 33])
def test_dense(machine, shape, m, rng):
    weight = rng.standard_normal(shape).astype(np.float32)
    check(machine, "dense", LinearOp("layer", weight, ("bias", "relu")), m, rng)


def takes(machine, name, block):
    """Whether the template runs blocks of that size: rows keeps a sum for each output."""
    return name != "block_sparse_rows" or block[0] <= machine.hardware.vector_bytes // 4


@pytest.mark.parametrize(
    ("machine", "name", "block"),
    [
        case
        for case in itertools.product(MACHINES, templates("block_sparse"), BLOCKS)
        if takes(*case)
    ],
)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_block_sparse_blocks(machine, name, block, density, rng):
    turn = (BLOCKS.index(block) + int(10 * density)) % 4
    m = (33, 9, 8, 2)[turn] if name == "block_sparse_outputs" else (33, 16, 18, 70)[turn]
    weight = block_sparse(rng, SHAPES[turn], block, density)
    check(machine, name, LinearOp("layer", weight, ("bias",)), m, rng)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "block", [(1, 1), (1, 4), (2, 2), (4, 4), (8, 8), (16, 16), (3, 5), (32, 20)]
)
@pytest.mark.parametrize(("rank", "density"), [(1, 0.0), (1, 0.3), (3, 1.0)])
def test_kronecker_blocks(machine, block, rank, density, rng):
    shape = (block[0] * 7, block[1] * 9)
    for m, order in ((18, "b_first"), (7, "a_first")):
        op = LinearOp("layer", kronecker(rng, shape, block, rank, density), ("bias",))
        space = machine.template("kronecker").space(
            problem_of(op, m, np.dtype(np.float32)), machine.hardware
        )
        config = next(c for c in space if c["order"] == order)
        check(machine, "kronecker", op, m, rng, config=config)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("block", "rank", "epilogue"), [((8, 8), 2, ("bias",)), ((4, 6), 1, ("bias", "gelu"))]
)
def test_factors_in_every_tile_order_and_split(machine, block, rank, epilogue, rng):
    """Small integers show every wrong index. Nine block rows leave one over, however joined."""
    live = rng.random((9, 7)) < 0.4
    live[[0, 5]] = False
    a = rng.integers(-2, 3, (rank, *live.shape)) * live
    weight = KroneckerSum(a.astype(np.float32), rng.integers(-2, 3, (rank, *block)).astype("f4"))
    op = LinearOp("layer", weight, epilogue)
    x = rng.integers(-2, 3, (19, op.shape[1])).astype(np.float32)
    tensors = epilogue_tensors(rng, op.epilogue, 19, op.shape[0])
    want = evaluate(op, x, tensors)
    problem = problem_of(op, 19, np.dtype(np.float32))
    space = machine.template("kronecker").space(problem, machine.hardware)
    different = {(c["rows"], c["order"], c["split"]): c for c in space}
    assert len(different) >= 8
    for config in different.values():
        got = build_kernel(machine, "kronecker", op, 19, config)(x, tensors)
        assert_close(got, want, np.float32, op.shape[1], what=str(config))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(machine, name, epilogue, rng):
    op = layer(rng, name, epilogue)
    for m in (18,) if name == "block_sparse_rows" else (1, 18):
        check(machine, name, op, m, rng)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ALL)
def test_symbolic_rows(machine, name, rng):
    op = layer(rng, name, ("bias", "residual", "relu"))
    run = build_kernel(machine, name, op, None)
    for m in (0, 1, 2, 7, 8, 9, 33, 70, 130):
        check_run(run, name, op, m, rng)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ALL)
def test_configurations(machine, name, rng):
    op = layer(rng, name, ("bias",))
    template = machine.template(name)
    problem = problem_of(op, 37, np.dtype(np.float32))
    space = template.space(problem, machine.hardware)
    assert space
    assert len({tuple(c.items()) for c in space}) == len(space)
    for config in space[:: max(1, len(space) // 8)]:
        check(machine, name, op, 37, rng, config=config)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ALL)
def test_every_weight_counts(machine, name, rng):
    """A negative control: any one weight changed changes the result."""
    op = layer(rng, name)
    x = rng.standard_normal((17, op.shape[1])).astype(np.float32)
    before = build_kernel(machine, name, op, 17)(x)
    values = numbers(op.weight)
    for index in rng.choice(np.flatnonzero(values), 2, replace=False):
        kept = values.flat[index]
        values.flat[index] += 1
        changed = build_kernel(machine, name, op, 17)(x)
        assert np.abs(changed - before).max() > 1e-3
        values.flat[index] = kept
    np.testing.assert_array_equal(build_kernel(machine, name, op, 17)(x), before)


def numbers(weight):
    """The array that holds a weight's numbers."""
    if isinstance(weight, KroneckerSum):
        return weight.a
    return weight.values if isinstance(weight, BlockSparseMatrix) else weight


@pytest.mark.parametrize("machine", MACHINES[:1])
@pytest.mark.parametrize("block", [None, (16, 16), (2, 4)])
def test_weights_that_no_cache_holds_may_be_asked_for_ahead(machine, block, rng):
    """Small blocks first of all: they are where the processor loses track of the weights."""
    small, large = (
        rng.standard_normal((outputs, 1030)).astype(np.float32) for outputs in (40, 2100)
    )
    form = "block_sparse_outputs" if block else "dense"
    asked, first = {}, {}
    for name, dense in (("small", small), ("large", large)):
        weight = BlockSparseMatrix.from_dense(dense, block) if block else dense
        op = LinearOp("layer", weight)
        problem = problem_of(op, 1, np.dtype(np.float32))
        template = machine.template(form)
        space = template.space(problem, machine.hardware)
        same = [c for c in space if {**c, "ahead": 0} == {**space[0], "ahead": 0}]
        first[name] = same[0]["ahead"]
        for config in same:
            func = template.build(problem, weight, config, machine.hardware).prim_func
            asked[name, config["ahead"]] = "llvm.prefetch" in str(func)
            check(machine, form, op, 1, rng, config)
    assert asked == {("small", 0): False, ("large", 16): True, ("large", 0): False}
    assert first == {"small": 0, "large": 16 if block == (2, 4) else 0}

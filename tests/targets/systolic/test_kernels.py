"""int8 layers on the simulated array against float64, cycles and all."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.devices import systolic as simulator
from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import QuantizedMatrix, quantize_weight
from bscompile.dialect.quantization import Quantization
from bscompile.targets.base import problem_of
from bscompile.targets.systolic.commands import CLEAR, MATMUL, bound_cycles, stream_cycles
from bscompile.targets.systolic.hardware import hardware
from bscompile.targets.systolic.templates import TEMPLATES
from tests.targets.narrow_running import load_kernel
from tests.targets.systolic.device import needs_simulator
from tests.targets.test_kernels import block_sparse, epilogue_tensors
from tests.tolerance import assert_close

pytestmark = needs_simulator

CASES = [  # array, out x in, trained block, density
    (8, (64, 64), (8, 8), 0.3),
    (8, (65, 47), (16, 16), 0.4),
    (8, (10, 84), (12, 7), 0.5),
    (16, (67, 50), (4, 8), 0.4),
    (16, (15, 17), (16, 16), 1.0),
    (16, (30, 7), (3, 5), 0.0),
    (16, (3, 1), (1, 1), 1.0),
    (16, (64, 96), (32, 32), 0.5),
]
MODES = [
    {},
    {"activation": "tensor"},
    {"activation": "static", "x_scale": 0.02, "x_zero": 117},
    {"activation": "static", "x_scale": 0.02, "x_zero": 3, "q_dtype": "int8"},
    {"activation": "static", "x_scale": 0.02, "x_zero": 99, "x_dtype": "uint8"},
    {"activation": "static", "x_scale": 0.02, "x_zero": -7, "x_dtype": "int8", "q_dtype": "int8"},
]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def drivers():
    for size in (8, 16):
        simulator.open_driver(size)


def quantised(weight, epilogue=(), **mode):
    numbers, scale = quantize_weight(weight)
    return LinearOp("layer", numbers, epilogue, None, Quantization(scale, **mode))


def build(op, m, array, dense=False):
    """The array's kernel for a layer, and its command stream."""
    spec = hardware(str(array), 1)
    if dense:
        op = op.with_weight(op.weight.to_dense())
    problem = problem_of(op, m, np.dtype(np.int8))
    (template,) = (t for t in TEMPLATES if t.space(problem, spec))
    assert template.name == f"array_{op.form}"
    (config,) = template.space(problem, spec)
    weight = QuantizedMatrix.of(op.weight, op.quantization)
    kernel = template.build(problem, weight, config, spec)
    return load_kernel(kernel, spec), dict(kernel.operands)["commands"]


def inputs_for(op, rng, m):
    shape = (m, op.shape[1])
    kind = op.quantization.x_dtype
    if kind == "float32":
        return rng.standard_normal(shape).astype(np.float32)
    low = np.iinfo(kind).min
    return rng.integers(low, low + 256, shape).astype(kind)


def check(run, op, rng, m):
    n, k = op.shape
    x, tensors = inputs_for(op, rng, m), epilogue_tensors(rng, op.epilogue, m, n)
    assert_close(run(x, tensors, (m, n)), evaluate(op, x, tensors), np.float32, k, what=f"m={m}")


@pytest.mark.parametrize(("array", "shape", "block", "density"), CASES)
@pytest.mark.parametrize("dense", [False, True])
def test_layers(array, shape, block, density, dense, rng):
    op = quantised(block_sparse(rng, shape, block, density), ("bias",))
    run, _ = build(op, None, array, dense)
    for m in (1, array + 1, 0):
        check(run, op, rng, m)


@pytest.mark.parametrize("m", [1, 16, 300])
def test_fixed_rows_and_exact_cycles(m, rng):
    op = quantised(block_sparse(rng, (40, 56), (8, 8), 0.4))
    run, stream = build(op, m, 8)
    before = simulator.cycles(8)
    check(run, op, rng, m)
    runs = [256] * (m // 256) + [m % 256]
    assert simulator.cycles(8) - before == sum(stream_cycles(stream, rows, 8) for rows in runs)


@pytest.mark.parametrize("mode", MODES)
def test_activation_modes(mode, rng):
    op = quantised(block_sparse(rng, (33, 41), (8, 8), 0.5), ("bias", "relu"), **mode)
    run, _ = build(op, None, 16)
    for m in (1, 18):
        check(run, op, rng, m)


@pytest.mark.parametrize("y_dtype", ["uint8", "int8"])
def test_results_leave_in_eight_bits(y_dtype, rng):
    mode = {**MODES[4], "y_dtype": y_dtype, "y_scale": 0.05, "y_zero": 11}
    op = quantised(block_sparse(rng, (33, 41), (8, 8), 0.5), ("bias", "relu"), **mode)
    x, tensors = inputs_for(op, rng, 18), epilogue_tensors(rng, op.epilogue, 18, 33)
    got = build(op, 18, 16)[0](x, tensors, (18, 33), y_dtype)
    want = evaluate(op, x, tensors)
    assert got.dtype == want.dtype == y_dtype
    apart = np.abs(got.astype(int) - want.astype(int))
    assert apart.max() <= 1  # where a number lies half between two
    assert (apart == 0).mean() > 0.99
    assert len(np.unique(want)) > 20


@pytest.mark.parametrize("epilogue", [(), ("bias", "gelu", "residual"), ("silu", "bias")])
def test_epilogues(epilogue, rng):
    op = quantised(block_sparse(rng, (33, 41), (8, 8), 0.5), epilogue)
    check(build(op, 18, 16)[0], op, rng, 18)


def test_every_weight_counts(rng):
    """The negative control: any one weight changed changes the result."""
    op = quantised(block_sparse(rng, (40, 56), (8, 8), 0.4))
    x = np.abs(inputs_for(op, rng, 5)) + 1
    before = build(op, 5, 8)[0](x, (), (5, 40))
    for index in rng.choice(np.flatnonzero(op.weight.values), 3, replace=False):
        op.weight.values.flat[index] ^= 1
        after = build(op, 5, 8)[0](x, (), (5, 40))
        assert (before != after).any(axis=0).sum() == 1
        op.weight.values.flat[index] ^= 1


@pytest.mark.parametrize(("array", "block"), [(8, 8), (8, 16), (16, 16)])
def test_a_tenth_of_the_blocks_takes_a_quarter_of_the_cycles_at_most(array, block, rng):
    """Block-sparse against dense on the same array, both simulated, both right."""
    op = quantised(block_sparse(rng, (256, 256), (block, block), 0.1))
    cycles, streams = {}, {}
    for dense in (False, True):
        run, streams[dense] = build(op, 32, array, dense)
        before = simulator.cycles(array)
        check(run, op, rng, 32)
        cycles[dense] = simulator.cycles(array) - before
    assert cycles[True] >= 4 * cycles[False]
    # Next to nothing is lost: all but filling and draining the array is work, or writing zeros.
    for dense, stream in streams.items():
        work = np.isin(stream[:, 0] & 3, (MATMUL, CLEAR)).sum()
        assert 0.95 < bound_cycles(work, 32) / cycles[dense] < 1

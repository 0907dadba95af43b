"""The test bench of the RTL: streams against numpy, exactly, and their cycles by the formula."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from bscompile.devices import systolic as simulator
from bscompile.targets.systolic.commands import (
    CLEAR,
    FIRST,
    LAST,
    LOAD,
    MATMUL,
    SHAPE,
    command_stream,
    stream_cycles,
)
from tests.targets.systolic.device import (
    Device,
    int8_matrix,
    int8_rows,
    needs_simulator,
    pattern,
)

RTL = simulator.SOURCES / "rtl"
STALLED, OUTSIDE = -1, -2

pytestmark = needs_simulator


@pytest.fixture(scope="module", params=[8, 16])
def device(request):
    return Device(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("size", [2, 8, 16, 32])
def test_the_rtl_has_no_lint(size):
    sources = [str(path) for path in sorted(RTL.glob("*.sv"))]
    command = ["verilator", "--lint-only", "-Wall", f"-GSIZE={size}", "--top-module", "systolic"]
    done = subprocess.run([*command, *sources], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rows", [1, 2, -1, 0, 1 + 8, 40, 256])
def test_streams_are_exact_in_numbers_and_cycles(device, rows, density, rng):
    rows = rows if rows > 0 else device.size + rows  # a row less than the array, and as many
    matrix = int8_matrix(rng, pattern(rng, 3, 5, density), device.size)
    x = int8_rows(rng, rows, matrix.shape[1])
    y, cycles = device.multiply(matrix, x)
    np.testing.assert_array_equal(y, x.astype(np.int32) @ matrix.to_dense().T.astype(np.int32))
    assert cycles == stream_cycles(command_stream(matrix), rows, device.size)


def test_the_largest_numbers_do_not_overflow(device):
    live = np.ones((1, 6), bool)
    matrix = int8_matrix(np.random.default_rng(0), live, device.size)
    matrix.values[:] = -128
    x = np.full((3, matrix.shape[1]), -128, np.int8)
    y, _ = device.multiply(matrix, x)
    assert (y == 128 * 128 * matrix.shape[1]).all()


def test_one_changed_weight_changes_one_column(device, rng):
    """The negative control: the numbers come from the array and from nowhere else."""
    matrix = int8_matrix(rng, pattern(rng, 3, 4, 0.5), device.size)
    x = int8_rows(rng, 9, matrix.shape[1])
    x[x == 0] = 1
    before, _ = device.multiply(matrix, x)
    matrix.values[1, 2, 3] ^= 1
    after, _ = device.multiply(matrix, x)
    row = matrix.row_ids[1] * device.size + 2
    assert (before != after).all(axis=0).nonzero()[0].tolist() == [row]
    assert (before != after).any(axis=0).sum() == 1


def test_results_of_one_run_do_not_reach_the_next(device, rng):
    for rows in (40, 3):
        matrix = int8_matrix(rng, pattern(rng, 2, 2, 1.0), device.size)
        x = int8_rows(rng, rows, matrix.shape[1])
        y, _ = device.multiply(matrix, x)
        np.testing.assert_array_equal(y, x.astype(np.int32) @ matrix.to_dense().T.astype(np.int32))


def test_loads_hide_behind_products(device, rng):
    """A block costs its rows of x, or of weights where those are more; loads add nothing."""
    for rows in (device.size, 3 * device.size, 3):
        costs = []
        for columns in (4, 5):
            matrix = int8_matrix(rng, np.ones((1, columns), bool), device.size)
            costs.append(device.multiply(matrix, int8_rows(rng, rows, matrix.shape[1]))[1])
        assert costs[1] - costs[0] == max(rows, device.size)


def test_wrong_streams_end_with_a_fault(device, rng):
    size = device.size
    weights, x = int8_rows(rng, size, size), int8_rows(rng, 4, size)
    y = np.zeros((4, size), np.int32)
    whole = [(SHAPE, 1, 1), (LOAD, 0, 0), (MATMUL | FIRST | LAST, 0, 0)]
    assert device.run_stream(whole, weights, x, y) > 0
    assert device.run_stream([(MATMUL | FIRST | LAST, 0, 0)], weights, x, y) == STALLED
    assert device.run_stream([*whole, (LOAD, 0, 0), (LOAD, 0, 0)], weights, x, y) == STALLED
    assert device.run_stream([(LOAD, 1, 0), whole[-1]], weights, x, y) == OUTSIDE
    assert device.run_stream([*whole[:2], (MATMUL | FIRST, 99, 0)], weights, x, y) == OUTSIDE
    assert device.run_stream([whole[0], (CLEAR, 0, 1 << 20)], weights, x, y) == OUTSIDE
    assert device.run_stream(whole, weights, x, y) > 0  # and the device works on


def test_the_driver_refuses_what_the_device_has_not(device):
    assert device.run(None, 0, simulator.DEPTH + 1) != 0
    assert device.run(None, 0, 0) != 0
    assert device.bind(3, None, 0) != 0


def test_cycles_add_up(device, rng):
    matrix = int8_matrix(rng, np.ones((1, 1), bool), device.size)
    x = int8_rows(rng, 2, matrix.shape[1])
    before = simulator.cycles(device.size)
    spent = sum(device.multiply(matrix, x)[1] for _ in range(3))
    assert simulator.cycles(device.size) == before + spent


@pytest.mark.slow
def test_the_largest_array(rng):
    device = Device(32)
    matrix = int8_matrix(rng, pattern(rng, 3, 3, 0.5), 32)
    x = int8_rows(rng, 33, matrix.shape[1])
    y, cycles = device.multiply(matrix, x)
    np.testing.assert_array_equal(y, x.astype(np.int32) @ matrix.to_dense().T.astype(np.int32))
    assert cycles == stream_cycles(command_stream(matrix), 33, 32)

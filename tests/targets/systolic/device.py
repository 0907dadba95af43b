"""The simulated array from Python: its driver's functions, and a skip where it cannot be built."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from bscompile.devices import systolic as simulator
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.systolic.commands import command_stream

needs_simulator = pytest.mark.skipif(
    bool(simulator.missing_packages()),
    reason=f"the RTL is simulated with {', '.join(simulator.missing_packages())}, not installed",
)


class Device:
    """The driver of an array, called as compiled layers call it."""

    def __init__(self, size):
        self.size = size
        self.driver = simulator.open_driver(size)

    def __getattr__(self, name):
        return self.driver[simulator.symbol(self.size, name)]

    def run_stream(self, stream, weights, x, y, rows=None):
        """Cycles of a stream, or the fault; y is written."""
        stream = np.ascontiguousarray(stream, np.int32)
        for region, array in enumerate((weights, x, y)):
            assert array.flags.c_contiguous
            pointer = ctypes.c_void_p(array.ctypes.data)
            assert self.bind(region, pointer, ctypes.c_int64(array.nbytes)) == 0
        pointer = ctypes.c_void_p(stream.ctypes.data)
        assert self.run(pointer, len(stream), len(x) if rows is None else rows) == 0
        return self.wait()

    def multiply(self, matrix, x):
        """(x Wᵀ, cycles) for W in blocks of the array's size and x [rows, block columns size]."""
        y = np.full((len(x), matrix.block_rows * self.size), 77, np.int32)
        weights = np.ascontiguousarray(matrix.values.transpose(0, 2, 1))
        return y, self.run_stream(command_stream(matrix), weights, x, y)


def pattern(rng, rows, columns, density):
    """Which blocks live; below full density one block row is empty."""
    live = rng.random((rows, columns)) < density
    if density < 1 and rows > 1:
        live[rng.integers(rows)] = False
    return live


def int8_matrix(rng, live, size):
    """A matrix in size x size blocks, full range, its live blocks surely not zero."""
    weight = rng.integers(-128, 128, (live.shape[0] * size, live.shape[1] * size))
    weight = np.where(weight == 0, 1, weight) * np.kron(live, np.ones((size, size), int))
    return BlockSparseMatrix.from_dense(weight.astype(np.int8), (size, size))


def int8_rows(rng, rows, width):
    return rng.integers(-128, 128, (rows, width)).astype(np.int8)

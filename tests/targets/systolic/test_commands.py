"""Command streams as data, and the closed form of their cycles; needs no simulator."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.targets.systolic.commands import (
    CLEAR,
    FIRST,
    LAST,
    LOAD,
    MATMUL,
    SHAPE,
    bound_cycles,
    command_stream,
    layer_cycles,
    stream_cycles,
)
from tests.targets.systolic.device import int8_matrix


def test_a_stream_goes_by_block_rows():
    live = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], bool)
    stream = command_stream(int8_matrix(np.random.default_rng(0), live, 8))
    assert stream.dtype == np.int32
    assert stream.tolist() == [
        [SHAPE, 3, 3],
        [LOAD, 0, 0],
        [MATMUL | FIRST, 0, 0],
        [LOAD, 8, 0],
        [MATMUL | LAST, 2, 0],
        [CLEAR, 0, 1],
        [LOAD, 16, 0],
        [MATMUL | FIRST | LAST, 1, 2],
    ]


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("rows", [1, 7, 8, 16, 33, 256])
def test_the_closed_form_is_the_streams(size, rows):
    live = np.random.default_rng(0).random((5, 6)) < 0.4
    live[:, 0] = True  # no block row is empty
    matrix = int8_matrix(np.random.default_rng(1), live, size)
    exact = stream_cycles(command_stream(matrix), rows, size)
    assert layer_cycles(matrix.nnzb, rows, size, depth=256) == exact


def test_empty_block_rows_cost_as_much_as_a_block_where_rows_fill_the_array():
    live = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
    matrix = int8_matrix(np.random.default_rng(0), live, 8)
    exact = stream_cycles(command_stream(matrix), 20, 8)
    assert layer_cycles(matrix.nnzb + 1, 20, 8, depth=256) == exact


def test_more_rows_than_a_run_takes_are_several_runs():
    whole, rest = layer_cycles(9, 256, 16, 256), layer_cycles(9, 44, 16, 256)
    assert layer_cycles(9, 2 * 256 + 44, 16, 256) == 2 * whole + rest
    assert layer_cycles(9, 256, 16, 256) == whole


def test_the_bound_is_work_without_waiting():
    for rows in (16, 64, 256):
        share = bound_cycles(100, rows) / layer_cycles(100, rows, 16, 256)
        assert 0.97 < share < 1
    # Of one row the array sees 1 in 16 cycles: the weights' port is the bound there.
    assert bound_cycles(100, 1) / layer_cycles(100, 1, 16, 256) < 1 / 16

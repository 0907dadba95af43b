"""Tile rows cut in pieces: for layers with too few tiles, and rows of unequal block counts."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import PRECISIONS, in_precision
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Problem
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.kernels.packing import Layout, cut_rows, pack_steps
from bscompile.targets.cuda.templates import TEMPLATES
from tests.targets.cuda import adapter
from tests.targets.cuda.conftest import kernel_for
from tests.targets.numeric_suite import Call
from tests.tolerance import assert_close

SHAPE, ROWS = (40, 2200), 9


def uneven(rng, block=(16, 16)):
    """A weight with an empty block row, a full one and others in between."""
    live = rng.random((-(-SHAPE[0] // block[0]), -(-SHAPE[1] // block[1]))) < 0.6
    live[0], live[1] = False, True
    mask = np.kron(live, np.ones(block, bool))[: SHAPE[0], : SHAPE[1]]
    weight = (rng.standard_normal(SHAPE) * mask).astype(np.float32)
    return BlockSparseMatrix.from_dense(weight, block)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_pieces_are_even_and_make_up_their_row(chunk, rng):
    whole = pack_steps(uneven(rng), Layout(16, 16, 64), "float32")
    cut = dict(cut_rows(whole, chunk))
    whole = dict(whole)
    pieces = np.diff(cut["indptr"])
    assert 1 <= pieces.min() <= pieces.max() <= chunk
    np.testing.assert_array_equal(cut["indptr"][cut["begins"]], whole["indptr"])
    for first, last in zip(cut["begins"], cut["begins"][1:], strict=False):
        assert np.ptp(pieces[first:last]) <= 1


def test_pieces_are_added_up(rng):
    machine, functions, calls = hardware("sm_90"), {}, {}
    x = rng.standard_normal((ROWS, SHAPE[1])).astype(np.float32)
    bias = rng.standard_normal(SHAPE[0]).astype(np.float32)
    for template, dtype, rows in (
        ("block_sparse_tensor_cores", "bfloat16", ROWS),
        ("block_sparse_tensor_cores", "int8", None),
        ("dense_cuda_cores", "float32", None),
    ):
        weight = uneven(rng)
        weight = weight.to_dense() if template.startswith("dense") else weight
        kernel, _ = kernel_for(
            machine, template, weight, rows, dtype, ("bias", "relu"), chunk=4, rows=16
        )
        name = f"{template}_{dtype}"
        functions[name] = kernel.prim_func
        op = in_precision(LinearOp("layer", weight, ("bias", "relu")), PRECISIONS[dtype])
        seen = x.astype(PRECISIONS[dtype]).astype(np.float32) if kernel.x_dtype else x
        call = Call(kernel, (x, bias), (ROWS, SHAPE[0]))
        calls[name] = call, evaluate(op, seen, (bias,))
    module = adapter.compile_module(functions, machine)
    for name, (call, want) in calls.items():
        assert_close(adapter.run(module[name], call), want, np.float32, SHAPE[1], what=name)


def test_they_are_chosen_where_the_machine_would_idle():
    machine = hardware("sm_90")
    template = next(one for one in TEMPLATES if one.name == "block_sparse_tensor_cores")

    def best(n, k, rows, density=0.5):
        live = int(n * k / 4096 * density)
        problem = Problem("block_sparse", rows, n, k, (64, 64), live, 0, "bfloat16")
        return template.space(problem, machine)[0]

    assert "chunk" in best(1024, 16384, 32)
    assert "chunk" not in best(16384, 4096, 4096)

"""Tile rows cut in pieces: for layers with too few tiles, and rows of unequal block counts."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import PRECISIONS, in_precision
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Problem
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.kernels.band_shape import BandShape
from bscompile.targets.cuda.kernels.packing import Layout, cut_rows, pack_steps
from bscompile.targets.cuda.templates import TEMPLATES
from tests.targets.cuda import adapter
from tests.targets.cuda.conftest import kernel_for
from tests.targets.cuda.test_hopper import kernel_of
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


def shared_tiles(rng):
    """(PrimFuncs, calls, answers): blocks of a cluster share the steps of each wgmma tile.

    The first band is empty, another lies in some blocks' steps only; tiles of x are cut.
    """
    live = rng.random((13, 63)) < 0.3
    live[:4], live[4:8, 8:] = False, False
    mask = np.kron(live, np.ones((16, 16), bool))[:200, :1000]
    weight = BlockSparseMatrix.from_dense(
        (rng.standard_normal((200, 1000)) * mask).astype(np.float32), (16, 16)
    )
    x, bias = (rng.standard_normal(size).astype(np.float32) for size in ((40, 1000), 200))
    op = in_precision(LinearOp("layer", weight, ("bias", "relu")), PRECISIONS["bfloat16"])
    want = evaluate(op, x.astype(PRECISIONS["bfloat16"]).astype(np.float32), (bias,))
    functions, calls = {}, {}
    for bands, split, rows in ((1, 8, 16), (2, 4, 32), (2, 2, 16)):
        shape = BandShape(bands, rows, parts=1, group=16, stages=3, cluster=1, split=split)
        kernel, _ = kernel_of(weight, shape, None, ("bias", "relu"))
        name = f"shared{bands}_{split}"
        functions[name], calls[name] = kernel.prim_func, Call(kernel, (x, bias), (40, 200))
    return functions, calls, want


def test_blocks_that_share_a_tile_add_up_what_each_has(rng):
    functions, calls, want = shared_tiles(rng)
    machine = hardware("sm_90")
    module = adapter.compile_module(functions, machine)
    for name, call in calls.items():
        assert_close(adapter.run(module[name], call), want, np.float32, 1000, what=name)


@pytest.mark.usefixtures("on_emulator")
def test_sums_of_the_wrong_block_change_the_result(rng):
    functions, calls, want = shared_tiles(rng)

    def fault(text):
        text, count = re.subn(r"(bscompile_load_from\(.*), 1\);", r"\1, 0);", str(text))
        assert count, "the source has no such place"
        return text

    name = "shared2_2"
    module = adapter.compile_module({name: functions[name]}, hardware("sm_90"), fault)
    assert np.abs(adapter.run(module[name], calls[name]) - want).max() > 1e-2


def test_they_are_chosen_where_the_machine_would_idle():
    machine = hardware("sm_90")
    template = next(one for one in TEMPLATES if one.name == "block_sparse_tensor_cores")

    def best(n, k, rows, density=0.5):
        live = int(n * k / 4096 * density)
        problem = Problem("block_sparse", rows, n, k, (64, 64), live, 0, "bfloat16")
        return template.space(problem, machine)[0]

    assert "chunk" in best(1024, 16384, 32)
    assert "chunk" not in best(16384, 4096, 4096)
    template = next(one for one in TEMPLATES if one.name == "block_sparse_wgmma")
    assert best(1024, 16384, 32)["split"] > 1
    assert best(16384, 4096, 4096)["split"] == 1

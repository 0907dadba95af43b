"""Packing, the cost model's counts and the table of architectures: no code is generated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bscompile import targets
from bscompile.errors import TargetError
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Problem
from bscompile.targets.cuda.hardware import ARCHITECTURES, hardware
from bscompile.targets.cuda.kernels.packing import (
    Layout,
    expected_steps,
    groups_for,
    pack_coefficients,
    pack_steps,
)
from bscompile.targets.cuda.templates import TEMPLATES
from tests.targets.cuda.conftest import block_sparse

LAYOUTS = [Layout(16, 16, 64), Layout(32, 8, 64), Layout(64, 4, 32), Layout(16, 1, 32)]


def unpack(operands, layout, shape):
    """The matrix that a kernel multiplies by, from what it reads."""
    values, starts, indptr, order = (array for _, array in operands)
    n, k = shape
    dense = np.zeros((len(order) * layout.rows, k), np.float64)
    for place, tile in enumerate(order):
        for step in range(indptr[place], indptr[place + 1]):
            for group, start in enumerate(starts[step]):
                first = start * layout.unit(k)
                piece = values[step][:, group * layout.group : (group + 1) * layout.group]
                rows = slice(tile * layout.rows, (tile + 1) * layout.rows)
                dense[rows, first : first + layout.group] += piece
    return dense[:n]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "block"),
    [((64, 96), (16, 16)), ((65, 47), (8, 8)), ((40, 70), (12, 7)), ((3, 64), (1, 4))],
)
def test_packing_keeps_the_matrix(layout, shape, block, rng):
    weight = block_sparse(rng, shape, block, 0.4)
    for matrix in (weight, weight.to_dense()):
        operands = pack_steps(matrix, layout, "float32")
        if matrix is not weight and shape[1] % layout.step == 0:
            np.testing.assert_array_equal(operands[0][1], matrix)  # see test_dense.py
            continue
        np.testing.assert_array_equal(unpack(operands, layout, shape), weight.to_dense())


@pytest.mark.parametrize("layout", [Layout(16, 8, 64), Layout(32, 8, 64)])
def test_coefficients_and_factors_keep_the_matrix(layout, rng):
    support = rng.random((9, 11)) < 0.4
    support[0] = support[4] = False
    a, b = rng.standard_normal((2, 9, 11)) * support, rng.standard_normal((2, 4, 8))
    weight = KroneckerSum(a.astype(np.float32), b.astype(np.float32))
    coefficients, *places, factors = pack_coefficients(weight, layout, "float32")
    blocks = np.einsum("sroc,rpq->sopcq", coefficients[1], factors[1])
    values = blocks.reshape(len(blocks), layout.rows, layout.step)
    dense = unpack((("values", values), *places), layout, weight.shape)
    np.testing.assert_allclose(dense, weight.to_dense(), rtol=1e-6, atol=1e-6)


def test_rebuilding_is_expected_to_pay_for_wide_blocks_of_high_rank():
    """By the model: both factors' products grow with block and rank, those of a tile do not."""
    machine = hardware("sm_90")

    def best(block, rank):
        posed = problem((block, block), 4096**2 // block**2 // 10, 4096, 4096, "kronecker", m=1024)
        posed = replace(posed, rank=rank)
        return {
            t.name: t.cost(posed, t.space(posed, machine)[0], machine)
            for t in TEMPLATES
            if t.space(posed, machine)
        }

    wide, narrow = best(64, 4), best(8, 1)
    assert set(wide) == set(narrow) == {"kronecker", "kronecker_tensor_cores"}
    assert wide["kronecker_tensor_cores"] < wide["kronecker"]
    assert narrow["kronecker_tensor_cores"] > narrow["kronecker"]


def test_long_tile_rows_come_first_and_empty_ones_have_a_step(rng):
    weight = block_sparse(rng, (128, 256), (16, 16), 0.3)
    operands = dict(pack_steps(weight, Layout(16, 16, 64), "float32"))
    steps = np.diff(operands["indptr"])
    assert (np.diff(steps) <= 0).all()
    assert steps.min() == 1
    assert sorted(operands["order"]) == list(range(8))


def problem(block, nnzb, n=512, k=512, form="block_sparse", dtype="bfloat16", m=64):
    return Problem(form, m, n, k, block, nnzb, 0, dtype)


@pytest.mark.parametrize(
    ("block", "tile"), [((16, 16), 16), ((32, 64), 32), ((4, 4), 16), ((12, 7), 32)]
)
def test_the_cost_model_counts_what_packing_makes(block, tile, rng):
    weight = block_sparse(rng, (512, 512), block, 0.2)
    posed = problem(block, weight.nnzb)
    layout = Layout(tile, groups_for(posed, 64), 64)
    made = len(dict(pack_steps(weight, layout, "float32"))["values"])
    assert expected_steps(posed, layout) == pytest.approx(made, rel=0.15)


def test_dense_steps_are_counted_exactly():
    posed = problem((1, 1), 512 * 512, form="dense")
    assert expected_steps(posed, Layout(64, 64, 64)) == 8 * 8


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_configuration_fits_its_architecture(name):
    machine = hardware(name)
    assert machine.isa == name
    for template in TEMPLATES:
        for form, dtype in [(f, d) for f in ("dense", "block_sparse") for d in machine.peak_gflops]:
            posed = problem((16, 16), 200, form=form, dtype=dtype, m=None)
            for config in template.space(posed, machine):
                assert template.shared_bytes(config, dtype) <= machine.group_bytes
                assert template.cost(posed, config, machine) > machine.launch_seconds


def test_a_sparse_layer_is_expected_to_beat_dense():
    machine = hardware("sm_90")

    def best(form, nnzb):
        posed = problem((64, 64), nnzb, 4096, 4096, form, m=4096)
        return min(
            template.cost(posed, template.space(posed, machine)[0], machine)
            for template in TEMPLATES
            if template.space(posed, machine)
        )

    dense = best("dense", 4096 * 4096)
    assert best("block_sparse", 410) < 0.5 * dense
    assert best("block_sparse", 4096) > 0.9 * dense


def test_variants_are_listed_when_one_is_unknown():
    for spec in ("cuda:sm_99", "cuda:sm_80+sm_99"):
        with pytest.raises(TargetError, match=r"unknown variant 'sm_99' of target cuda.*sm_90"):
            targets.resolve(spec)
    with pytest.raises(TargetError, match=r"unknown variant 'avx2\+avx512' of target cpu"):
        targets.resolve("cpu:avx2+avx512")


def test_joined_variants_fit_all_of_them():
    joined, first = targets.resolve("cuda:sm_90+sm_86").hardware, hardware("sm_90")
    assert joined.group_bytes == hardware("sm_86").group_bytes < first.group_bytes
    assert joined.peak_gflops == first.peak_gflops
    assert joined.isa == "sm_90+sm_86"

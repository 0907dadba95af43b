"""Zero blocks are found from values alone, and what is not block-sparse is declined honestly."""

import numpy as np
import pytest

from bscompile.formats import BlockSparseMatrix
from bscompile.formats.detect import detect_blocks
from tests.passes.helpers import blocky, dense

BLOCKS = [
    (1, 4), (4, 1), (1, 2), (2, 2), (4, 4), (8, 4), (4, 8), (32, 1), (1, 32), (16, 16),
    (32, 32), (64, 64), (64, 2), (12, 7), (36, 5),
]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("density", [0.1, 0.5, 0.8])
def test_finds_the_block_that_made_the_zeros(block, density):
    pattern = detect_blocks(blocky((256, 520), block, density))
    assert pattern.kind == "block"
    assert pattern.block == block


@pytest.mark.parametrize("delta", [-1, 0, 1])
@pytest.mark.parametrize("block", [(4, 4), (8, 2), (3, 16)])
def test_sizes_that_the_block_does_not_divide(block, delta):
    shape = (10 * block[0] + delta, 9 * block[1] + delta)
    weight = blocky(shape, block, 0.4)
    pattern = detect_blocks(weight)
    assert pattern.block == block
    stored = BlockSparseMatrix.from_dense(weight, pattern.block)
    np.testing.assert_array_equal(stored.to_dense(), weight)
    assert pattern.density == pytest.approx(stored.density)


@pytest.mark.parametrize("block", [(4, 4), (32, 32)])
def test_accidental_zeros_inside_live_blocks_do_not_hide_the_pattern(block):
    weight = blocky((256, 512), block, 0.2)
    weight *= np.random.default_rng(1).random(weight.shape) > 0.01
    assert detect_blocks(weight).block == block


def test_the_transposed_weight_has_the_transposed_block():
    weight = blocky((96, 160), (8, 2), 0.3)
    assert detect_blocks(weight.T).block == (2, 8)


def test_dead_rows_and_columns_are_blocks():
    rng = np.random.default_rng(0)
    rows = dense(128, 256) * (rng.random((128, 1)) < 0.5)
    assert detect_blocks(rows).block == (1, 64)
    assert detect_blocks(rows.T).block == (64, 1)


def test_a_weight_of_zeros_only_is_block_sparse_with_nothing_live():
    pattern = detect_blocks(np.zeros((40, 24), np.float32))
    assert (pattern.kind, pattern.density, pattern.zeros) == ("block", 0.0, 1.0)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
def test_unstructured_zeros_are_declined(density):
    mask = np.random.default_rng(0).random((192, 768)) < density
    pattern = detect_blocks(dense(192, 768) * mask)
    assert pattern.kind == "unstructured"
    assert pattern.block == (1, 1)
    assert "scattered" in pattern.reason


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("axis", [0, 1])
def test_n_of_m_sparsity_is_declined_by_name(n, m, axis):
    ranks = np.argsort(np.argsort(np.random.default_rng(0).random((96, 40, m))))
    weight = dense(96, 40 * m) * (ranks < n).reshape(96, 40 * m)
    pattern = detect_blocks(weight if axis == 1 else np.ascontiguousarray(weight.T))
    assert pattern.kind == "n:m"
    assert f"{n}:{m} sparse along {'in' if axis else 'out'}" in pattern.reason


def test_a_dense_weight_is_declined():
    pattern = detect_blocks(dense(64, 64))
    assert pattern.kind == "dense"
    assert pattern.density == 1.0


def test_few_zero_blocks_are_not_worth_it():
    weight = dense(256, 256)
    weight[:16, :16] = 0
    assert detect_blocks(weight).kind == "dense"


def test_blocks_that_are_small_but_not_zero_get_a_hint():
    live = blocky((128, 128), (16, 16), 0.3) != 0
    pattern = detect_blocks(dense(128, 128) * np.where(live, 1, 1e-5))
    assert pattern.kind == "near_zero"
    assert "16x16 blocks are tiny but not zero" in pattern.reason
    assert "set them to zero" in pattern.reason


def test_an_empty_weight_is_dense():
    assert detect_blocks(np.zeros((0, 8), np.float32)).kind == "dense"


def test_only_matrices_are_taken():
    with pytest.raises(ValueError, match=r"matrix \[out, in\]"):
        detect_blocks(dense(3, 3, 3))

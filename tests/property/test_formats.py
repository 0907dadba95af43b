"""What holds for every matrix, whatever its shape, block and zeros."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from bscompile.formats import BlockSparseMatrix, KroneckerSum
from tests.tolerance import assert_close

sides = st.integers(1, 9)
blocks = st.tuples(sides, sides)
# Few distinct values make zero blocks common and shrink well.
matrices = npst.arrays(
    np.float32,
    st.tuples(st.integers(0, 20), st.integers(0, 20)),
    elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.5]),
)
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("repeatable")


@given(matrices, blocks)
def test_dense_to_blocks_and_back_is_the_identity(weight, block):
    matrix = BlockSparseMatrix.from_dense(weight, block)
    np.testing.assert_array_equal(matrix.to_dense(), weight)
    assert matrix.values.any(axis=(1, 2)).all()
    assert matrix.nnzb == matrix.mask().sum()


@given(matrices, blocks)
def test_transposing_twice_is_the_identity(weight, block):
    matrix = BlockSparseMatrix.from_dense(weight, block)
    twice = matrix.transpose().transpose()
    np.testing.assert_array_equal(twice.values, matrix.values)
    np.testing.assert_array_equal(twice.indices, matrix.indices)
    np.testing.assert_array_equal(twice.indptr, matrix.indptr)
    np.testing.assert_array_equal(matrix.transpose().to_dense(), weight.T)


@given(matrices, blocks, blocks)
def test_reblocking_keeps_the_matrix_and_stores_no_zero_block(weight, old, new):
    matrix = BlockSparseMatrix.from_dense(weight, old).reblock(new)
    afresh = BlockSparseMatrix.from_dense(weight, new)
    assert matrix.block == new
    np.testing.assert_array_equal(matrix.to_dense(), weight)
    np.testing.assert_array_equal(matrix.indices, afresh.indices)
    np.testing.assert_array_equal(matrix.indptr, afresh.indptr)


@given(
    st.integers(1, 3), st.tuples(sides, sides), st.tuples(sides, sides), st.integers(0, 2**32 - 1)
)
def test_a_kronecker_sum_is_the_sum_of_np_kron(rank, grid, block, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rank, *grid)) * (rng.random(grid) < 0.5)
    factor = KroneckerSum(a, rng.standard_normal((rank, *block)))
    want = sum(np.kron(x, y) for x, y in zip(factor.a, factor.b, strict=True))
    assert_close(factor.to_block_sparse().to_dense(), want, np.float64, rank)
    assert_close(factor.transpose().transpose().to_dense(), want, np.float64, rank)

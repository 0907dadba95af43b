import numpy as np
import pytest

from bscompile.formats import KroneckerSum
from tests.tolerance import assert_close


def factors(seed, r, grid, block, density=0.5, dtype=np.float64):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((r, *grid)) * (rng.random(grid) < density)
    return KroneckerSum(a.astype(dtype), rng.standard_normal((r, *block)).astype(dtype))


def kron_sum(factor):
    return sum(np.kron(a, b) for a, b in zip(factor.a, factor.b, strict=True))


@pytest.mark.parametrize("r", [1, 2, 4])
@pytest.mark.parametrize("block", [(4, 4), (8, 2), (1, 5), (3, 1)])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_merges_to_the_sum_of_np_kron(r, block, density):
    factor = factors(0, r, (3, 5), block, density)
    assert_close(factor.to_block_sparse().to_dense(), kron_sum(factor), np.float64, r)
    assert_close(factor.to_dense(), kron_sum(factor), np.float64, r)
    assert_close(factor.transpose().to_dense(), kron_sum(factor).T, np.float64, r)
    assert factor.to_block_sparse().nnzb == factor.support.sum()


def test_tells_its_sizes():
    factor = factors(1, 2, (3, 5), (4, 8), dtype=np.float32)
    live = int(factor.support.sum())
    assert (factor.rank, factor.block, factor.shape) == (2, (4, 8), (12, 40))
    assert factor.density == live / 15
    assert factor.nbytes == 4 * (2 * live + 2 * 32) + 4 * (live + 3 + 1)
    assert factor.astype(np.float16).b.dtype == np.float16


def test_counts_multiply_adds_of_both_orders():
    factor = factors(2, 3, (4, 6), (2, 5))
    live = int(factor.support.sum())
    assert factor.macs_per_row("b_first") == 3 * (30 * 2 + live * 2)
    assert factor.macs_per_row("a_first") == 3 * (live * 5 + 8 * 5)
    with pytest.raises(ValueError, match="order must be 'b_first' or 'a_first', got 'both'"):
        factor.macs_per_row("both")


@pytest.mark.parametrize(
    ("a", "b"),
    [((2, 3, 3), (1, 4, 4)), ((0, 3, 3), (0, 4, 4)), ((3, 3), (1, 4, 4)), ((1, 3, 3), (4, 4))],
)
def test_misshapen_factors_are_refused(a, b):
    with pytest.raises(ValueError, match="factors must be a"):
        KroneckerSum(np.ones(a), np.ones(b))


def test_factors_of_two_dtypes_are_refused():
    with pytest.raises(ValueError, match="differ in dtype: a float32, b float64"):
        KroneckerSum(np.ones((1, 2, 2), np.float32), np.ones((1, 2, 2)))

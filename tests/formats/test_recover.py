import numpy as np
import pytest

from bscompile.formats import BlockSparseMatrix, KroneckerSum, recover
from bscompile.formats.recover import recover_kronecker

CASES = [((4, 4), 1), ((8, 8), 1), ((8, 8), 4), ((16, 16), 2), ((8, 4), 2), ((2, 2), 2)]


def merged(shape, block, rank, density, seed=0, trained=False):
    """A weight merged in float32 and the support of S.

    ``trained`` spreads the scales of terms and coefficients as training does.
    """
    rng = np.random.default_rng(seed)
    grid = shape[0] // block[0], shape[1] // block[1]
    support = rng.random(grid) < density
    a = rng.standard_normal((rank, *grid))
    b = rng.standard_normal((rank, *block))
    if trained:
        a *= rng.lognormal(sigma=1.0, size=grid) * np.logspace(0, -1.5, rank)[:, None, None]
        b += 0.7  # terms that are far from orthogonal
    a, b = (a * support).astype(np.float32), b.astype(np.float32)
    blocks = np.tensordot(a, b, axes=(0, 0))  # [m1, n1, bh, bw], float32 sums
    return blocks.transpose(0, 2, 1, 3).reshape(shape), support


def assert_recovers(weight, found, block, rank, support, error):
    assert isinstance(found, KroneckerSum), found
    assert (found.block, found.rank) == (block, rank)
    assert found.a.dtype == weight.dtype
    np.testing.assert_array_equal(found.support, support)  # zeros of S are kept exactly
    difference = np.abs(found.to_dense().astype(float) - weight.astype(float)).max()
    assert difference <= error * np.abs(weight).max()


@pytest.mark.parametrize(("block", "rank"), CASES)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_finds_the_block_rank_and_support_of_a_merged_weight(block, rank, density):
    weight, support = merged((192, 384), block, rank, density)
    assert_recovers(weight, recover_kronecker(weight), block, rank, support, 2e-6)
    found = recover_kronecker(weight.T.copy())
    assert_recovers(weight.T, found, block[::-1], rank, support.T, 2e-6)


@pytest.mark.parametrize(("block", "rank"), CASES)
def test_finds_factors_whose_scales_are_spread_by_training(block, rank):
    weight, support = merged((192, 192), block, rank, 0.3, trained=True)
    assert_recovers(weight, recover_kronecker(weight), block, rank, support, 4e-6)


@pytest.mark.parametrize(("block", "rank"), [((8, 8), 1), ((8, 8), 4), ((16, 16), 2)])
def test_finds_factors_of_a_float16_weight(block, rank):
    weight, support = merged((192, 384), block, rank, 0.4)
    half = weight.astype(np.float16)
    assert_recovers(half, recover_kronecker(half), block, rank, support, 5e-3)


def test_values_rounded_to_float16_are_recovered_only_where_that_is_accepted():
    weight, support = merged((192, 384), (8, 8), 2, 0.4)
    rounded = weight.astype(np.float16).astype(np.float32)
    assert_recovers(rounded, recover_kronecker(rounded), (8, 8), 2, support, 1e-3)
    reason = recover_kronecker(rounded, accept_rounded=False)
    assert "looks like 2 Kronecker terms of 8x8 blocks that were rounded to float16" in reason


def test_exact_float16_numbers_need_no_permission():
    weight = np.kron(np.eye(8, dtype=np.float32), np.arange(16, dtype=np.float32).reshape(4, 4))
    found = recover_kronecker(weight, ((4, 4),), accept_rounded=False)
    assert isinstance(found, KroneckerSum)
    np.testing.assert_allclose(found.to_dense(), weight, atol=1e-5)


def test_float64_weights_are_recovered_to_float64():
    rng = np.random.default_rng(0)
    weight = sum(np.kron(rng.standard_normal((24, 24)), rng.standard_normal((4, 4))) for _ in "ab")
    found = recover_kronecker(weight)
    assert_recovers(weight, found, (4, 4), 2, np.ones((24, 24), bool), 1e-13)


def test_a_block_sparse_matrix_may_be_given():
    weight, support = merged((64, 64), (8, 8), 1, 0.5)
    found = recover_kronecker(BlockSparseMatrix.from_dense(weight, (16, 16)))
    assert_recovers(weight, found, (8, 8), 1, support, 2e-6)


def independent(kind):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((192, 384)).astype(np.float32)
    if kind == "unstructured":
        return weight * (rng.random(weight.shape) < 0.1)
    if kind == "2:4":
        order = rng.random((192, 96, 4)).argsort(axis=2)
        return weight * (order < 2).reshape(weight.shape)
    if kind == "dense":
        return weight
    block = 16 if kind == "16x16 blocks" else 4
    mask = rng.random((192 // block, 384 // block)) < 0.2
    return weight * np.kron(mask, np.ones((block, block), np.float32))


@pytest.mark.parametrize("kind", ["dense", "unstructured", "2:4", "16x16 blocks", "4x4 blocks"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_of_other_methods_are_declined(kind, dtype):
    reason = recover_kronecker(independent(kind).astype(dtype))
    assert isinstance(reason, str)
    assert "blocks are independent in all" in reason


def test_a_low_rank_weight_becomes_factors_only_where_they_cost_less():
    rng = np.random.default_rng(0)
    low = rng.standard_normal((192, 6)) @ rng.standard_normal((6, 384))
    found = recover_kronecker(low.astype(np.float32))
    assert isinstance(found, KroneckerSum)
    assert found.macs_per_row("a_first") < low.size / 2
    nearly = rng.standard_normal((192, 60)) @ rng.standard_normal((60, 384))
    assert isinstance(recover_kronecker(nearly.astype(np.float32)), str)


def test_few_live_blocks_are_no_factorization():
    weight = np.zeros((64, 64), np.float32)
    weight[:8, :8] = np.random.default_rng(0).standard_normal((8, 8))
    weight[32:40, 16:24] = np.random.default_rng(1).standard_normal((8, 8))
    assert isinstance(recover_kronecker(weight), str)


def test_a_rank_near_the_blocks_own_is_declined_for_its_size():
    weight, _ = merged((64, 64), (4, 4), 11, 1.0)
    assert isinstance(recover_kronecker(weight, ((4, 4),)), str)
    weight, _ = merged((48, 48), (16, 16), 5, 0.7)  # seven blocks, rank 5
    reason = recover_kronecker(weight, ((16, 16),))
    assert isinstance(reason, str)


def test_noise_over_the_tolerance_is_declined():
    weight, _ = merged((192, 192), (8, 8), 1, 1.0)
    noise = np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    assert isinstance(recover_kronecker(weight + 1e-3 * noise), str)
    # Below the rank tolerance, above what rounding explains.
    reason = recover_kronecker(weight + 3e-6 * np.abs(weight).max() * noise, ((8, 8),))
    assert "rebuild the weight only to" in reason


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros((8, 8), np.float32), "no non-zero entry"),
        (np.zeros((0, 8), np.float32), "no non-zero entry"),
        (np.full((8, 8), np.nan, np.float32), "not finite"),
        (np.full((8, 8), np.inf, np.float16), "not finite"),
        (np.ones((8, 8), np.int8), "not int8"),
        (np.ones((67, 71), np.float32), "no block divides 67x71"),
    ],
)
def test_weights_that_cannot_be_factorized(weight, message):
    assert message in recover_kronecker(weight)


def test_the_result_does_not_depend_on_the_seed():
    weight, support = merged((96, 192), (8, 8), 2, 0.3)
    for seed in range(5):
        found = recover_kronecker(weight, seed=seed)
        assert_recovers(weight, found, (8, 8), 2, support, 2e-6)


def test_smooth_weights_are_looked_at_whole_only_a_few_times(monkeypatch):
    """Nearly low rank in dozens of sizes: each whole look costs what the weight is large."""
    rows, columns = np.arange(768)[:, None], np.arange(384)[None]
    weight = np.sin(0.01 * rows + 0.02 * columns) + 0.1 * np.cos(1e-4 * rows * columns)
    looks = []
    whole = recover._factorize
    monkeypatch.setattr(recover, "_factorize", lambda *a: looks.append(a[1]) or whole(*a))
    recover.recover_kronecker(weight.astype(np.float32))
    assert 1 <= len(looks) <= recover._ATTEMPTS

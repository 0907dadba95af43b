import numpy as np
import pytest

from bscompile.formats import BlockSparseMatrix


def block_zero(rng, shape, block, density):
    """A dense matrix whose blocks are live with the given probability."""
    grid = tuple(-(-s // b) for s, b in zip(shape, block, strict=True))
    mask = np.kron(rng.random(grid) < density, np.ones(block))[: shape[0], : shape[1]]
    return (rng.standard_normal(shape) * mask).astype(np.float32)


def assert_same(got, want):
    for name in ("values", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        assert getattr(got, name).dtype == getattr(want, name).dtype
    assert got.shape == want.shape


def test_cuts_a_matrix_into_its_live_blocks():
    weight = np.zeros((4, 6))
    weight[0, 4] = 1.0
    weight[3, 0] = 2.0
    matrix = BlockSparseMatrix.from_dense(weight, (2, 2))
    assert matrix.indices.tolist() == [2, 0]
    assert matrix.indptr.tolist() == [0, 1, 2]
    assert matrix.values[0].tolist() == [[1, 0], [0, 0]]
    assert matrix.values[1].tolist() == [[0, 0], [2, 0]]
    assert matrix.row_ids.tolist() == [0, 1]
    assert matrix.density == 2 / 6
    assert matrix.mask().tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize("out", [7, 8, 9])
@pytest.mark.parametrize("inner", [15, 16, 17])
def test_dense_round_trip_around_the_block_edge(out, inner):
    rng = np.random.default_rng(0)
    weight = block_zero(rng, (out, inner), (8, 16), 0.7)
    matrix = BlockSparseMatrix.from_dense(weight, (8, 16))
    np.testing.assert_array_equal(matrix.to_dense(), weight)
    np.testing.assert_array_equal(matrix.transpose().to_dense(), weight.T)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0], [1], []])
def test_block_rows_are_taken_as_they_are(rows):
    weight = block_zero(np.random.default_rng(4), (24, 30), (8, 4), 0.4)
    weight[8:16] = 0  # an empty block row
    kept = (np.array(rows, np.int64)[:, None] * 8 + np.arange(8)).reshape(-1)
    taken = BlockSparseMatrix.from_dense(weight, (8, 4)).take_block_rows(np.array(rows, np.int64))
    assert_same(taken, BlockSparseMatrix.from_dense(weight[kept], (8, 4)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_keeps_the_dtype(dtype):
    weight = np.eye(4, dtype=dtype)
    matrix = BlockSparseMatrix.from_dense(weight, (2, 2))
    assert matrix.to_dense().dtype == dtype
    assert matrix.reblock((4, 1)).values.dtype == dtype
    assert matrix.astype(np.float64).values.dtype == np.float64


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (5, 6)])
def test_matrices_without_live_blocks(shape):
    matrix = BlockSparseMatrix.from_dense(np.zeros(shape, np.float32), (4, 4))
    assert matrix.nnzb == 0
    assert matrix.density == 0.0
    assert matrix.to_dense().shape == shape
    assert matrix.transpose().shape == shape[::-1]
    assert matrix.reblock((2, 8)).to_dense().shape == shape


def test_a_nan_keeps_its_block_alive():
    weight = np.zeros((4, 4))
    weight[3, 3] = np.nan
    assert BlockSparseMatrix.from_dense(weight, (2, 2)).nnzb == 1


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("old", [(8, 8), (4, 16), (3, 5)])
@pytest.mark.parametrize("new", [(8, 8), (2, 4), (16, 32), (16, 4), (12, 12), (7, 1), (1, 1)])
def test_reblock_equals_cutting_afresh(density, old, new):
    rng = np.random.default_rng(1)
    weight = block_zero(rng, (50, 70), old, density)
    matrix = BlockSparseMatrix.from_dense(weight, old)
    assert_same(matrix.reblock(new), BlockSparseMatrix.from_dense(weight, new))


def test_reblock_never_builds_the_dense_matrix_of_a_sparse_one(monkeypatch):
    weight = block_zero(np.random.default_rng(0), (64, 64), (8, 8), 0.1)
    matrix = BlockSparseMatrix.from_dense(weight, (8, 8))
    monkeypatch.delattr(BlockSparseMatrix, "to_dense")
    for block in ((16, 16), (4, 4), (4, 16), (16, 2)):
        assert_same(matrix.reblock(block), BlockSparseMatrix.from_dense(weight, block))


def _parts(**changed):
    parts = {
        "values": np.ones((2, 2, 2), np.float32),
        "indices": np.array([0, 1], np.int32),
        "indptr": np.array([0, 2, 2], np.int32),
        "shape": (4, 4),
    }
    return parts | changed


def test_valid_parts_are_accepted():
    assert BlockSparseMatrix(**_parts()).nnzb == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": np.ones((2, 4), np.float32)}, r"values must be \[nnzb, bh, bw\]"),
        ({"values": np.ones((2, 0, 2), np.float32)}, "block sides must be positive, got 0x2"),
        ({"shape": (4, -4)}, r"shape must be \(out, in\), got \(4, -4\)"),
        ({"indptr": np.array([0, 2], np.int32)}, r"indptr must be int32 \[3\] for \(4, 4\) in 2x2"),
        ({"indptr": np.array([0, 2, 2], np.int64)}, r"got int64 \[3\]"),
        ({"indptr": np.array([0, 1, 1], np.int32)}, "indptr must rise from 0 to 2"),
        ({"indptr": np.array([0, 3, 2], np.int32)}, "indptr must rise from 0 to 2"),
        ({"indices": np.array([0, 1], np.int64)}, r"indices must be int32 \[2\], one per block"),
        ({"indices": np.array([0], np.int32)}, r"one per block, got int32 \[1\]"),
        ({"indices": np.array([0, 2], np.int32)}, r"indices must lie in \[0, 2\)"),
        ({"indices": np.array([-1, 1], np.int32)}, r"indices must lie in \[0, 2\)"),
        ({"indices": np.array([1, 0], np.int32)}, "rise strictly within each block row"),
        ({"indices": np.array([1, 1], np.int32)}, "rise strictly within each block row"),
        ({"shape": (4, 3)}, r"values beyond the edge of \(4, 3\) must be zero"),
        (
            {"shape": (3, 4), "indptr": np.array([0, 0, 2], np.int32)},
            r"values beyond the edge of \(3, 4\) must be zero",
        ),
    ],
)
def test_broken_parts_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        BlockSparseMatrix(**_parts(**changed))


def test_a_weight_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"weight must be a matrix \[out, in\], got shape \(4,\)"):
        BlockSparseMatrix.from_dense(np.ones(4), (2, 2))
    with pytest.raises(ValueError, match="block sides must be positive, got 2x0"):
        BlockSparseMatrix.from_dense(np.ones((4, 4)), (2, 0))
    with pytest.raises(ValueError, match="block sides must be positive, got 0x2"):
        BlockSparseMatrix.from_dense(np.ones((4, 4)), (2, 2)).reblock((0, 2))

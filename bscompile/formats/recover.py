"""Find the Kronecker factors of a merged weight again: W [out, in] -> KroneckerSum.

Cut W into bh x bw blocks and write each non-zero block as one row of R [live, bh bw]. W is a
sum of r Kronecker products with that block exactly when R has rank r (a zero block is a zero
row and keeps its exact zero in A). With R = U Σ Vᵀ the factors are Bᵢ = row i of Vᵀ and
A = R V. The rank is read from the Gram matrix RᵀR in float64, where the gap after the true
rank stands out: 2e-8 of the largest singular value for float32 weights, 1e-4 after a rounding
to float16.

The search is quick because it rejects on a sample: r + 1 independent blocks prove that the
rank is over r, so a few dozen random live blocks suffice to decline a candidate. Smooth weights
pass that for many sizes and fail later; what passes is sampled once more, and the whole weight is
looked at for few sizes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.formats.block_sparse import BlockSparseMatrix
from bscompile.formats.kronecker import KroneckerSum

Array = npt.NDArray[Any]

LARGEST_SIDE = 64
LARGEST_AREA = 1024
_STORAGE = 0.55  # of the live blocks' numbers that factors may hold: two terms of 2x2 need half
_SAMPLE = 1024  # blocks that a size must show its rank on before the whole weight is looked at
_ATTEMPTS = 8  # sizes that the whole weight is looked at for
LARGEST_RANK = 32  # blocks up to 64x64 pay off only for fewer terms than half their side


@dataclass(frozen=True)
class Precision:
    """How exact the entries of a merged weight are.

    Attributes:
        name: The dtype they were last rounded to.
        rank: Singular values below this share of the largest are noise.
        error: Largest accepted |W - ΣA⊗B|, as a share of the largest |W|, times √r.
    """

    name: str
    rank: float
    error: float


_PRECISIONS = {
    "float64": Precision("float64", 1e-11, 2e-14),
    "float32": Precision("float32", 1e-5, 2e-6),
    "float16": Precision("float16", 3e-3, 4e-3),
}


def recover_kronecker(
    weight: Array | BlockSparseMatrix,
    blocks: tuple[tuple[int, int], ...] | None = None,
    *,
    accept_rounded: bool = True,
    seed: int = 0,
) -> KroneckerSum | str:
    """The cheapest exact factorization of a weight, or the reason why there is none.

    Cheapest means fewest multiply-adds over the live blocks in the better order. Factors are
    accepted only if they hold fewer numbers than the live blocks, do not multiply the work
    and rebuild W within a tolerance of its dtype.

    Args:
        weight: W [out, in], float16, float32 or float64.
        blocks: The (bh, bw) to try; by default all that divide the shape, sides up to
            ``LARGEST_SIDE`` and areas up to ``LARGEST_AREA``.
        accept_rounded: Whether a float32 weight whose entries were all rounded to float16
            may be replaced by the factors that it was rounded from. They differ from it by
            that rounding, up to 5e-4 of an entry.
        seed: Of the random sample.

    Returns:
        Factors in the weight's dtype, or a sentence that says why there are none.
    """
    dense = weight.to_dense() if isinstance(weight, BlockSparseMatrix) else weight
    if dense.dtype.name not in _PRECISIONS:
        return f"factors are sought in float16, float32 and float64 weights, not {dense.dtype}"
    if dense.ndim != 2 or not dense.any():
        return "the weight has no non-zero entry"
    if not np.isfinite(dense).all():
        return "the weight has entries that are not finite"
    precision = _PRECISIONS[dense.dtype.name]
    rounded = dense.dtype == np.float32 and _is_float16_rounded(dense)
    if rounded:
        precision = _PRECISIONS["float16"]

    candidates = _candidates(dense.shape) if blocks is None else blocks
    candidates = tuple(c for c in candidates if _divides(dense.shape, c))
    if not candidates:
        return f"no block divides {dense.shape[0]}x{dense.shape[1]}"
    found = _search(dense, candidates, precision, np.random.default_rng(seed))
    if isinstance(found, KroneckerSum) and rounded and not accept_rounded:
        error = _error(dense, found)
        if error > _PRECISIONS["float32"].error * found.rank**0.5:
            bh, bw = found.block
            return (
                f"looks like {found.rank} Kronecker terms of {bh}x{bw} blocks that were rounded "
                f"to float16; kept as it is, because the factors differ from it by {error:.0e}"
            )
    return found


def _search(
    dense: Array,
    candidates: tuple[tuple[int, int], ...],
    precision: Precision,
    rng: np.random.Generator,
) -> KroneckerSum | str:
    """Branch and bound over the blocks: the sampled rank bounds the cost from below."""
    positions = _live_positions(dense, rng)
    live_entries = int(np.count_nonzero(dense))
    bounds = []
    for block in candidates:
        limit = _rank_limit(dense.shape, block)
        few, some = limit + 4, 2 * limit + 8
        columns = rng.permutation(block[0] * block[1])[:some]
        for count in (few, _SAMPLE):
            if count > few:  # columns that are zero in most blocks say nothing
                seen = _sampled_blocks(dense, block, positions, few).any(axis=0)
                columns = rng.permutation(np.flatnonzero(seen))[:some]
            # Fewer columns cannot have a higher rank.
            sample = _sampled_blocks(dense, block, positions, count, columns)
            rank = _rank(sample, precision)
            # With few live blocks the sample is all of them; independent ones are no sum of terms.
            if rank > limit or rank >= _STORAGE * len(sample):
                break
        else:
            live = -(-live_entries // (block[0] * block[1]))
            bounds.append((_macs(dense.shape, block, live, rank), block, rank))
    best: KroneckerSum | None = None
    best_macs = float("inf")
    reason = f"blocks are independent in all {len(candidates)} sizes tried: no sum of few terms"
    for attempt, (bound, block, _) in enumerate(sorted(bounds)):
        if bound >= best_macs or attempt == _ATTEMPTS:
            break
        found = _factorize(dense, block, precision)
        if isinstance(found, str):
            reason = found
        else:
            macs = min(found.macs_per_row("b_first"), found.macs_per_row("a_first"))
            if macs < best_macs:
                best, best_macs = found, macs
    return best or reason


def _factorize(dense: Array, block: tuple[int, int], precision: Precision) -> KroneckerSum | str:
    """Factors for one block, checked against the weight, or the reason against them."""
    bh, bw = block
    sparse = BlockSparseMatrix.from_dense(dense, block)
    live, area = sparse.nnzb, bh * bw
    R = sparse.values.reshape(live, area).astype(np.float64)  # [live, area]
    singular, vectors = _row_space(R, precision)
    rank = int((singular > precision.rank * singular[0]).sum())
    if rank * (live + area) > _STORAGE * live * area:
        return (
            f"{bh}x{bw} blocks have rank {rank}: factors would hold {rank * (live + area)} "
            f"numbers, the {live} live blocks hold {live * area}"
        )
    macs = _macs(sparse.shape, block, live, rank)
    if macs > 2 * live * area:
        return (
            f"{bh}x{bw} blocks have rank {rank}: factors would take {macs} multiply-adds a row, "
            f"the live blocks {live * area}"
        )
    B = vectors[:rank]  # [rank, area], orthonormal
    coefficients = B @ R.T  # [rank, live]
    # Entries of B near 1 and of A near the weight's own: safe to round to a short dtype.
    scale = np.abs(B).max(axis=1, keepdims=True)
    A = np.zeros((rank, sparse.block_rows, sparse.block_cols), dtype=dense.dtype)
    A[:, sparse.row_ids, sparse.indices] = coefficients * scale
    factors = KroneckerSum(A, (B / scale).reshape(rank, bh, bw).astype(dense.dtype))
    error = _error(sparse, factors)
    if error > precision.error * rank**0.5:
        return (
            f"{bh}x{bw} blocks look like rank {rank}, but {rank} terms rebuild the weight only "
            f"to {error:.0e} of its largest entry, wanted {precision.error * rank**0.5:.0e}"
        )
    return factors


def _error(weight: Array | BlockSparseMatrix, factors: KroneckerSum) -> float:
    """Largest |W - ΣA⊗B| over the largest |W|."""
    if not isinstance(weight, BlockSparseMatrix):
        weight = BlockSparseMatrix.from_dense(weight, factors.block)
    R = weight.values.reshape(weight.nnzb, -1).astype(np.float64)
    A = factors.a[:, weight.row_ids, weight.indices].astype(np.float64)
    rebuilt = A.T @ factors.b.reshape(factors.rank, -1).astype(np.float64)
    return float(np.abs(rebuilt - R).max() / np.abs(R).max())


def _candidates(shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Every block that cuts the shape exactly, except those that are no factorization."""
    out, inner = shape
    highs = [s for s in range(1, min(LARGEST_SIDE, out) + 1) if out % s == 0]
    wides = [s for s in range(1, min(LARGEST_SIDE, inner) + 1) if inner % s == 0]
    return tuple((h, w) for h in highs for w in wides if 1 < h * w <= LARGEST_AREA)


def _divides(shape: tuple[int, ...], block: tuple[int, int]) -> bool:
    return shape[0] % block[0] == 0 and shape[1] % block[1] == 0 and block != shape


def _macs(shape: tuple[int, ...], block: tuple[int, int], live: int, rank: int) -> int:
    """Multiply-adds per row of x, in the better order (see KroneckerSum.macs_per_row)."""
    (out, inner), (bh, bw) = shape, block
    return rank * min(bh * (inner + live), bw * (live + out))


def _rank_limit(shape: tuple[int, ...], block: tuple[int, int]) -> int:
    """The largest rank that ``_factorize`` could accept, whatever the number of live blocks."""
    area = block[0] * block[1]
    blocks = shape[0] * shape[1] // area
    storage = int(_STORAGE * blocks * area / (blocks + area))
    return min(storage, 2 * blocks * area // _macs(shape, block, blocks, 1), LARGEST_RANK)


def _rank(R: Array, precision: Precision) -> int:
    """Numerical rank of a small R [sample, area]."""
    if precision.name == "float64":
        singular = np.linalg.svd(R, compute_uv=False)
    else:
        gram = _gram(R.T if R.shape[0] < R.shape[1] else R)
        if _is_full(gram, precision):
            return len(gram)
        singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
    return int((singular > precision.rank * singular[0]).sum())


def _gram(R: Array) -> Array:
    """Rᵀ R in pieces that BLAS leaves to one thread: on a busy machine others keep it waiting."""
    gram = np.zeros((R.shape[1], R.shape[1]))
    step = max(1, (1 << 18) // max(1, R.shape[1] ** 2))
    for start in range(0, len(R), step):
        part = R[start : start + step]
        gram += part.T @ part
    return gram


def _is_full(gram: Array, precision: Precision) -> bool:
    """Whether no singular value is noise, by a quick test that is sure where it says so.

    The trace is no less than the largest eigenvalue, and Cholesky's factorization of what
    remains after a multiple of it is taken off exists only where all eigenvalues are larger.
    """
    noise = precision.rank**2 * np.trace(gram)
    try:
        np.linalg.cholesky(gram - noise * np.eye(len(gram)))
    except np.linalg.LinAlgError:
        return False
    return True


def _row_space(R: Array, precision: Precision) -> tuple[Array, Array]:
    """Singular values, falling, and right singular vectors [..., area] of R [live, area].

    A Gram matrix blurs what is below 1e-8 of the largest; float64 weights need better.
    """
    if len(R) < R.shape[1] or precision.name == "float64":
        upright = R if len(R) < R.shape[1] else np.linalg.qr(R, mode="r")
        _, singular, vectors = np.linalg.svd(upright, full_matrices=False)
        return singular, vectors
    eigenvalues, vectors = np.linalg.eigh(R.T @ R)
    return np.sqrt(np.maximum(eigenvalues[::-1], 0)), vectors[:, ::-1].T


def _live_positions(dense: Array, rng: np.random.Generator, wanted: int = 4096) -> Array:
    """Flat positions of non-zero entries in random order: a sample where there are many."""
    flat = dense.reshape(-1)
    if flat.size > 8 * wanted:
        drawn: Array = rng.integers(flat.size, size=4 * wanted)
        drawn = drawn[flat[drawn] != 0]
        if len(drawn) >= wanted // 4:
            return drawn
    shuffled: Array = rng.permutation(np.flatnonzero(flat))
    return shuffled[:wanted]


def _sampled_blocks(
    dense: Array, block: tuple[int, int], positions: Array, count: int, columns: Array | None = None
) -> npt.NDArray[np.float64]:
    """Up to ``count`` different live blocks as rows [count, bh bw], or some columns of these."""
    inner, (bh, bw) = dense.shape[1], block
    positions = positions[: 8 * count] if len(positions) > 1000 else positions
    grid = (positions // inner // bh) * (inner // bw) + positions % inner // bw
    _, first = np.unique(grid, return_index=True)
    chosen = grid[np.sort(first)[:count]]
    rows, cols = chosen // (inner // bw), chosen % (inner // bw)
    corners = rows * (bh * inner) + cols * bw
    entries = np.arange(bh * bw) if columns is None else columns
    places = corners[:, None] + (entries // bw * inner + entries % bw)
    return np.asarray(dense.reshape(-1).take(places), np.float64)


def _is_float16_rounded(dense: Array) -> bool:
    """Whether every entry of a float32 matrix is a float16 number."""
    sample = dense.reshape(-1)[:4096]
    with np.errstate(over="ignore"):
        if not (sample == sample.astype(np.float16)).all():
            return False
        return bool((dense == dense.astype(np.float16)).all())

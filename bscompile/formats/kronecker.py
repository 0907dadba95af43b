"""A sum of Kronecker products: W = Σᵢ Aᵢ ⊗ Bᵢ with one sparsity pattern for all Aᵢ.

The training method (arXiv 2503.21928) writes W = Σᵢ (S∘Aᵢ) ⊗ Bᵢ; here S is already folded
into A. Block (p, q) of W is Σᵢ A[i, p, q] B[i], so it is zero where all A[i, p, q] are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.formats.block_sparse import BlockSparseMatrix

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class KroneckerSum:
    """A matrix [out, in] = [m1 bh, n1 bw] as r pairs of factors.

    Attributes:
        a: float [r, m1, n1], S∘Aᵢ; exact zeros are skipped when the layer runs.
        b: float [r, bh, bw].
    """

    a: Array
    b: Array

    def __post_init__(self) -> None:
        if self.a.ndim != 3 or self.b.ndim != 3 or len(self.a) != len(self.b) or not len(self.a):
            raise ValueError(
                "factors must be a [r, m1, n1] and b [r, bh, bw] with r >= 1, "
                f"got {list(self.a.shape)} and {list(self.b.shape)}"
            )
        if self.a.dtype != self.b.dtype:
            raise ValueError(f"factors differ in dtype: a {self.a.dtype}, b {self.b.dtype}")

    @property
    def rank(self) -> int:
        """Number of Kronecker terms r."""
        return int(self.a.shape[0])

    @property
    def block(self) -> tuple[int, int]:
        """(bh, bw), the shape of each Bᵢ."""
        return int(self.b.shape[1]), int(self.b.shape[2])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of W."""
        return int(self.a.shape[1] * self.b.shape[1]), int(self.a.shape[2] * self.b.shape[2])

    @property
    def support(self) -> npt.NDArray[np.bool_]:
        """Bool [m1, n1]: blocks with a non-zero coefficient in any term."""
        support: npt.NDArray[np.bool_] = np.asarray(self.a.any(axis=0))
        return support

    @property
    def density(self) -> float:
        """Live blocks over all blocks."""
        return float(self.support.mean()) if self.support.size else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the live coefficients, their int32 pattern and B."""
        live = int(self.support.sum())
        scalars = live * self.rank * self.a.itemsize + self.b.nbytes
        return int(scalars + 4 * (live + self.a.shape[1] + 1))

    def macs_per_row(self, order: str) -> int:
        """Multiply-adds per row of x.

        B first: r (n bh + nnz bh); A first: r (nnz bw + m bw), with nnz the live blocks
        (each live (p, q) costs bh or bw multiply-adds a term).

        Args:
            order: ``"b_first"`` or ``"a_first"``.
        """
        live, (bh, bw) = int(self.support.sum()), self.block
        out, inner = self.shape
        if order == "b_first":
            return self.rank * (inner * bh + live * bh)
        if order == "a_first":
            return self.rank * (live * bw + out * bw)
        raise ValueError(f"order must be 'b_first' or 'a_first', got {order!r}")

    def to_block_sparse(self) -> BlockSparseMatrix:
        """The merged weight, live blocks only; never builds the dense matrix."""
        support = self.support
        rows, cols = np.nonzero(support)
        values = np.einsum("rk,rhw->khw", self.a[:, rows, cols], self.b)
        return BlockSparseMatrix(
            values=np.ascontiguousarray(values.astype(self.a.dtype, copy=False)),
            indices=cols.astype(np.int32),
            indptr=np.concatenate([[0], np.cumsum(support.sum(axis=1))]).astype(np.int32),
            shape=self.shape,
        )

    def to_dense(self) -> Array:
        """The merged weight [out, in]."""
        return self.to_block_sparse().to_dense()

    def transpose(self) -> KroneckerSum:
        """Wᵀ: (A ⊗ B)ᵀ = Aᵀ ⊗ Bᵀ."""
        return KroneckerSum(
            np.ascontiguousarray(self.a.transpose(0, 2, 1)),
            np.ascontiguousarray(self.b.transpose(0, 2, 1)),
        )

    def astype(self, dtype: npt.DTypeLike) -> KroneckerSum:
        """The same factors in another dtype."""
        return KroneckerSum(self.a.astype(dtype, copy=False), self.b.astype(dtype, copy=False))

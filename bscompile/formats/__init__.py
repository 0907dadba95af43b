"""Weight formats: what a layer's weight *is*, in numpy only.

A weight is always [out, in], as in nn.Linear: y = x Wᵀ + bias.
"""

from bscompile.formats.block_sparse import BlockSparseMatrix
from bscompile.formats.kronecker import KroneckerSum

__all__ = ["BlockSparseMatrix", "KroneckerSum"]

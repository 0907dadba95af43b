"""Kernel templates of GPU-like targets."""

from __future__ import annotations

from bscompile.targets.gpu.kernels.kronecker import KroneckerTemplate
from bscompile.targets.gpu.kernels.linear import BlockSparseTemplate, DenseTemplate

__all__ = ["TEMPLATES"]

#: For dense, block-sparse and Kronecker layers of known size in float32 and float16.
TEMPLATES = (DenseTemplate(), BlockSparseTemplate(), KroneckerTemplate())

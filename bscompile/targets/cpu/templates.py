"""The kernel templates of the CPU target, in order of preference."""

from __future__ import annotations

from bscompile.targets.base import KernelTemplate
from bscompile.targets.kernels.amx import AmxTiles
from bscompile.targets.kernels.block_sparse_outputs import BlockSparseOutputs
from bscompile.targets.kernels.block_sparse_rows import BlockSparseRows
from bscompile.targets.kernels.dense import DenseTemplate
from bscompile.targets.kernels.kronecker import KroneckerTemplate
from bscompile.targets.kernels.kronecker_narrow import NarrowKronecker
from bscompile.targets.kernels.narrow import NarrowProducts
from bscompile.targets.kernels.narrow_rows import NarrowRows

TEMPLATES: tuple[KernelTemplate, ...] = (
    DenseTemplate(),
    BlockSparseOutputs(),
    BlockSparseRows(),
    KroneckerTemplate(),
    NarrowProducts(),
    NarrowRows(),
    NarrowKronecker(),
    AmxTiles(),
)

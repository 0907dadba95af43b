"""The kernel templates of the CUDA target, in order of preference."""

from __future__ import annotations

from bscompile.targets.base import KernelTemplate
from bscompile.targets.cuda.kernels.kronecker import KroneckerTemplate
from bscompile.targets.cuda.kernels.steps import CudaCores, FewRows, TensorCores

TEMPLATES: tuple[KernelTemplate, ...] = (
    *(
        kind(form)
        for form in ("dense", "block_sparse")
        for kind in (TensorCores, CudaCores, FewRows)
    ),
    KroneckerTemplate(),
)

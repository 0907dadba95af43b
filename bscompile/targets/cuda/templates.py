"""The kernel templates of the CUDA target, in order of preference."""

from __future__ import annotations

from bscompile.targets.base import KernelTemplate
from bscompile.targets.cuda.kernels.kronecker import KroneckerTemplate
from bscompile.targets.cuda.kernels.rebuilt import Rebuilt
from bscompile.targets.cuda.kernels.steps import CudaCores, FewRows, TensorCores
from bscompile.targets.cuda.kernels.wgmma import Wgmma

TEMPLATES: tuple[KernelTemplate, ...] = (
    *(
        kind(form)
        for form in ("dense", "block_sparse")
        for kind in (Wgmma, TensorCores, CudaCores, FewRows)
    ),
    KroneckerTemplate(),
    Rebuilt(),
)

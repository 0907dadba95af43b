"""The whole pass order of the CPU target, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import relax

from bscompile.targets.cpu.fuse_attention import FuseAttention
from bscompile.targets.cpu.fuse_depthwise import FuseDepthwise
from bscompile.targets.cpu.fuse_matmul import FuseMatmul
from bscompile.targets.cpu.fuse_rows import FuseRows
from bscompile.targets.cpu.legalize import FAST_MATH
from bscompile.targets.cpu.schedules import Schedule

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

#: Peel the last, partial tile of a split loop instead of testing in every iteration.
PASS_CONFIG = {"s_tir.LoopPartition": {"partition_const_loop": True}}

_T = relax.transform


def passes(hardware: HardwareSpec) -> list[Any]:
    """Every pass from the lowered module to what the virtual machine runs, in order."""
    return [
        # What remains of the graph becomes loops.
        _T.DecomposeOpsForInference(),
        _T.CanonicalizeBindings(),
        FuseAttention(hardware),
        FuseDepthwise(hardware),
        FuseMatmul(hardware),
        FuseRows(hardware),
        _T.DeadCodeElimination(),
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        _T.LegalizeOps(FAST_MATH),
        # Reshapes of whole tensors become views before fusion could hide them in a kernel.
        _T.RewriteDataflowReshape(),
        _T.AnnotateTIROpPattern(),
        _T.FoldConstant(),
        _T.FuseOps(),
        _T.FuseTIR(),
        _T.DeadCodeElimination(),
        Schedule(hardware),
        # Calls become calls on planned memory.
        _T.ToNonDataflow(),
        _T.RemovePurityChecking(),
        _T.CallTIRRewrite(),
        _T.StaticPlanBlockMemory(),
        _T.LowerAllocTensor(),
        _T.KillAfterLastUse(),
        _T.LowerRuntimeBuiltin(),
        _T.ComputePrimValue(),
        _T.VMShapeLower(),
        _T.AttachGlobalSymbol(),
    ]

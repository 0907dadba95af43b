"""The pass order that every target of TVM's virtual machine shares, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import relax

_T = relax.transform


def to_virtual_machine(
    schedule: Any, legalize: Mapping[str, Any], graph: Sequence[Any] = ()
) -> list[Any]:
    """Every pass from the lowered module to what the virtual machine runs, in order.

    Args:
        schedule: The target's pass that schedules every loop nest.
        legalize: Operator -> how it becomes loops, where that is not TVM's way.
        graph: The target's passes on the graph, before it becomes loops.
    """
    return [
        # What remains of the graph becomes loops.
        _T.DecomposeOpsForInference(),
        _T.CanonicalizeBindings(),
        # Passes on the graph ask who reads a value; copies that nobody reads do not count.
        _T.DeadCodeElimination(),
        *graph,
        _T.DeadCodeElimination(),
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        _T.LegalizeOps(legalize),
        # Reshapes of whole tensors become views before fusion could hide them in a kernel.
        _T.RewriteDataflowReshape(),
        _T.AnnotateTIROpPattern(),
        _T.FoldConstant(),
        _T.FuseOps(),
        _T.FuseTIR(),
        _T.DeadCodeElimination(),
        schedule,
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

"""From a lowered module to calls of kernels on planned memory, every length known."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, tirx

from bscompile.errors import ModelError
from bscompile.targets.programs.constants import lift_constants
from bscompile.targets.programs.outputs import CopyAliasedOutputs
from bscompile.targets.programs.refusal import refusal

if TYPE_CHECKING:
    from bscompile.targets.base import TargetContext
    from bscompile.targets.lowering import Lowered

Pass = Callable[[tvm.IRModule], tvm.IRModule]
Legalizer = Callable[[relax.BlockBuilder, Any], Any]

_T = relax.transform

#: A call of TVM's runtime inside a loop nest, such as a sort; a device has none.
_LIBRARY = re.compile(r'call_packed\("([^"]+)"')


@dataclass(frozen=True, eq=False)
class Rules:
    """What a target decides on this road.

    Attributes:
        schedule: Schedules one tirx.PrimFunc that no template made. Loop nests come here fused;
            what it cannot schedule it refuses with a BscompileError.
        legalize: Operator name -> how it becomes loops, in place of TVM's own way.
        graph: Passes over operators, before these become loops.
        loops: Passes over the fused loop nests, before they are scheduled.
        scheduled: Passes after that.
    """

    schedule: Callable[[Any], Any]
    legalize: Mapping[str, Legalizer] = field(default_factory=dict)
    graph: Sequence[Pass] = ()
    loops: Sequence[Pass] = ()
    scheduled: Sequence[Pass] = ()


def passes(rules: Rules, target: str) -> list[Pass]:
    """Every pass from the lowered module to calls on planned memory, in order."""
    return [
        _T.DecomposeOpsForInference(),
        _T.CanonicalizeBindings(),
        *rules.graph,
        _T.DeadCodeElimination(),
        _T.LegalizeOps(dict(rules.legalize)),
        # Reshapes of whole tensors become views before fusion could hide them in a kernel.
        _T.RewriteDataflowReshape(),
        _T.AnnotateTIROpPattern(),
        _T.FoldConstant(),
        _T.FuseOps(),
        _T.FuseTIR(),
        _T.DeadCodeElimination(),
        CopyAliasedOutputs(),
        *rules.loops,
        _scheduling(rules.schedule, target),
        *rules.scheduled,
        # Calls become calls on planned memory.
        _T.ToNonDataflow(),
        _T.RemovePurityChecking(),
        _T.CallTIRRewrite(),
        _T.StaticPlanBlockMemory(),
    ]


def plan(lowered: Lowered, context: TargetContext, rules: Rules) -> Lowered:
    """Legalise, fuse, schedule and plan the memory of a model.

    Args:
        lowered: The model; every length must be known.
        context: The target it is for.
        rules: How that target does it.

    Returns:
        The module that ``make_program`` walks. Constants of the graph have become parameters
        after the weights.

    Raises:
        ModelError: a length is symbolic, or TVM cannot make loops of an operation.
    """
    _check_fixed(lowered, context.target.name)
    module = lowered.module
    # Some of TVM's legalizations ask for a target; loops are the same for all of them.
    with tvm.target.Target({"kind": "llvm"}), tvm.transform.PassContext(opt_level=3):
        try:
            for step in passes(rules, context.target.name):
                module = step(module)
        except tvm.error.InternalError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ModelError(
                f"no code for {context.target.name} can be generated from this model: "
                f"{lines[0] if lines else type(error).__name__}"
            ) from error
    module, constants = lift_constants(module, {name for name, _ in lowered.params})
    return replace(lowered, module=module, params=(*lowered.params, *constants))


def _check_fixed(lowered: Lowered, target: str) -> None:
    open_ = [
        (spec.name, length)
        for spec in lowered.inputs
        for length in spec.shape
        if isinstance(length, str)
    ]
    if open_:
        name, length = open_[0]
        given = dict.fromkeys(length for _, length in open_)
        raise ModelError(
            f"target {target} needs fixed shapes: input {name} leaves {length!r} open",
            "give " + " ".join(f"--dim {length}=N" for length in given),
        )


def _scheduling(schedule: Callable[[Any], Any], target: str) -> Pass:
    """The scheduling of every function; no pass of TVM's, which would lose the kind of an error."""

    def run(module: tvm.IRModule) -> tvm.IRModule:
        for name, func in list(module.functions_items()):
            if isinstance(func, tirx.PrimFunc) and not func.attrs.get("tirx.is_scheduled"):
                if library := _LIBRARY.search(func.script()):
                    raise refusal(target, f"the library function {library[1]}")
                scheduled = schedule(func.with_attr("global_symbol", name.name_hint))
                scheduled = scheduled.without_attr("global_symbol")
                module[name] = scheduled.with_attr("tirx.is_scheduled", True)
        return module

    return run

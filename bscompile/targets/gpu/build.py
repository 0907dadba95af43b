"""The road of GPU-like targets: plan with thread schedules, then source text and launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tvm

from bscompile.artifact.launches import MEMBER as LAUNCHES
from bscompile.artifact.program import MEMBER as PROGRAM
from bscompile.errors import ModelError
from bscompile.targets.gpu.legalize import LEGALIZE
from bscompile.targets.gpu.schedules import schedule
from bscompile.targets.gpu.source import DeviceCode, device_code
from bscompile.targets.gpu.workspace import LiftWorkspace
from bscompile.targets.programs import Rules, make_program, plan

if TYPE_CHECKING:
    from bscompile.artifact.program import Program
    from bscompile.targets.base import TargetContext
    from bscompile.targets.lowering import Lowered

Kernels = dict[str, Any]  # name -> tvm.tirx.PrimFunc


def prepare(lowered: Lowered, context: TargetContext, target: Any) -> Lowered:
    """Plan a model for a GPU-like tvm.target.Target.

    Raises:
        ModelError: the model is not one of fixed shapes, or a part has no code for the device.
    """
    rules = Rules(lambda func: schedule(func, target), LEGALIZE, scheduled=[LiftWorkspace()])
    return plan(lowered, context, rules)


def build(
    planned: Lowered,
    context: TargetContext,
    target: Any,
    fit: Callable[[Program, Kernels], tuple[Program, Kernels]] = lambda *parts: parts,
) -> tuple[dict[str, bytes], DeviceCode]:
    """The members that describe the program, and the code that its kernels are.

    Args:
        planned: As ``prepare`` leaves it.
        context: What it was planned for.
        target: The tvm.target.Target.
        fit: What the device wants changed about the program and its scheduled kernels.

    Raises:
        ModelError: TVM cannot generate code for one of the kernels.
    """
    try:
        program, kernels = fit(*make_program(planned, context.target.name))
        code = device_code(kernels, target)
    except tvm.error.InternalError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"no code for {context.target.name} can be generated from this model: "
            f"{lines[0] if lines else type(error).__name__}"
        ) from error
    members = {PROGRAM: program.to_json().encode(), LAUNCHES: code.launches.to_json().encode()}
    return members, code

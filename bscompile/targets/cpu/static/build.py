"""From a lowered module to a static executable for one processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec, TargetContext
    from bscompile.targets.lowering import Lowered


def prepare(lowered: Lowered, context: TargetContext) -> Lowered:
    """Plan the model's memory; loops that are no kernels of ours get the CPU's schedules.

    Raises:
        ModelError: a length is symbolic, or an operation has no loops.
    """
    from bscompile.targets.cpu.code import attention
    from bscompile.targets.cpu.fuse_attention import FuseAttention
    from bscompile.targets.cpu.fuse_groups import FuseGroups
    from bscompile.targets.cpu.fuse_matmul import FuseMatmul
    from bscompile.targets.cpu.fuse_rows import FuseRows
    from bscompile.targets.cpu.legalize import FAST_MATH
    from bscompile.targets.cpu.schedules import schedule
    from bscompile.targets.programs import Rules, plan

    hardware = context.hardware
    rules = Rules(
        schedule=lambda func: schedule(func, hardware),
        legalize=FAST_MATH,
        graph=[
            FuseAttention(attention.for_machine(hardware)),
            FuseGroups(hardware),
            FuseMatmul(hardware),
            FuseRows(hardware),
        ],
    )
    return plan(lowered, context, rules)


def build(
    lowered: Lowered, context: TargetContext, code: Callable[[HardwareSpec], Any]
) -> dict[str, bytes]:
    """Generate code and link.

    Args:
        lowered: As ``prepare`` left it.
        context: What it was lowered for.
        code: The tvm.target.Target of a machine's code.

    Raises:
        ModelError: TVM cannot generate code for an operation of the model.
        TargetError: no compiler for the processor is installed, or it fails.
    """
    from bscompile.targets.native import MACHINES
    from bscompile.targets.native.build import build_static
    from bscompile.targets.programs import make_program

    program, kernels = make_program(lowered, context.target.name)
    return build_static(
        program,
        kernels,
        [array for _, array in lowered.params],
        MACHINES[context.hardware.machine],
        code(context.hardware),
        context.hardware.cores,
        context.hardware.vector_bytes if context.hardware.isa == "rvv256" else 0,
    )

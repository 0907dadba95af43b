"""The whole pass order of the CPU target, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import tirx

from bscompile.targets.cpu.code import attention
from bscompile.targets.cpu.code.attention_narrow import BFloat16Nest
from bscompile.targets.cpu.fuse_attention import FuseAttention
from bscompile.targets.cpu.fuse_depthwise import FuseDepthwise
from bscompile.targets.cpu.fuse_groups import FuseGroups
from bscompile.targets.cpu.fuse_matmul import FuseMatmul
from bscompile.targets.cpu.fuse_rows import FuseRows
from bscompile.targets.cpu.fuse_steps import FuseSteps
from bscompile.targets.cpu.legalize import FAST_MATH
from bscompile.targets.cpu.schedules import Schedule
from bscompile.targets.kernels.code.emit import PRECISION
from bscompile.targets.kernels.narrow import instruction
from bscompile.targets.relax_passes import to_virtual_machine

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

#: Peel the last, partial tile of a split loop instead of testing in every iteration.
PASS_CONFIG = {"s_tir.LoopPartition": {"partition_const_loop": True}}


def passes(hardware: HardwareSpec) -> list[Any]:
    """Every pass from the lowered module to what the virtual machine runs, in order."""
    graph = [
        FuseSteps(hardware),
        _attention(hardware),
        FuseDepthwise(hardware),
        FuseGroups(hardware),
        FuseMatmul(hardware),
        FuseRows(hardware),
    ]
    return to_virtual_machine(Schedule(hardware), FAST_MATH, graph)


def _attention(hardware: HardwareSpec) -> Any:
    """Attention in bfloat16 where layers are multiplied in that and the machine has it."""

    def run(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        narrow = instruction("bfloat16", hardware) == "bf16" and any(
            isinstance(func, tirx.PrimFunc) and func.attrs.get(PRECISION) == "bfloat16"
            for _, func in module.functions_items()
        )
        generate = attention.for_machine(hardware, BFloat16Nest if narrow else None)
        return FuseAttention(generate)(module)

    return tvm.transform.module_pass(run, opt_level=0, name="bscompile.Attention")

"""The whole pass order of the CPU target, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bscompile.targets.cpu.code import attention
from bscompile.targets.cpu.fuse_attention import FuseAttention
from bscompile.targets.cpu.fuse_depthwise import FuseDepthwise
from bscompile.targets.cpu.fuse_groups import FuseGroups
from bscompile.targets.cpu.fuse_matmul import FuseMatmul
from bscompile.targets.cpu.fuse_rows import FuseRows
from bscompile.targets.cpu.legalize import FAST_MATH
from bscompile.targets.cpu.schedules import Schedule
from bscompile.targets.relax_passes import to_virtual_machine

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

#: Peel the last, partial tile of a split loop instead of testing in every iteration.
PASS_CONFIG = {"s_tir.LoopPartition": {"partition_const_loop": True}}


def passes(hardware: HardwareSpec) -> list[Any]:
    """Every pass from the lowered module to what the virtual machine runs, in order."""
    graph = [
        FuseAttention(attention.for_machine(hardware)),
        FuseDepthwise(hardware),
        FuseGroups(hardware),
        FuseMatmul(hardware),
        FuseRows(hardware),
    ]
    return to_virtual_machine(Schedule(hardware), FAST_MATH, graph)

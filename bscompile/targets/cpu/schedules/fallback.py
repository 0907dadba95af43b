"""Whatever no other rule takes: outer spatial loops in parallel where the work pays for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import s_tir

from bscompile.targets.cpu.schedules import loops

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec


def apply(func: Any, hardware: HardwareSpec) -> Any:
    """Parallelise each block alone; a block that resists stays as it is."""
    sch, blocks = loops.start(func)
    for block in blocks:
        nest = sch.get_loops(block)
        if not nest or loops.work(sch, nest) < loops.PARALLEL_ELEMENTS:
            continue
        try:
            sch.parallel(nest[0])
        except s_tir.ScheduleError:
            continue
    return loops.finish(sch, func)

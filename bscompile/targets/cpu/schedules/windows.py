"""The windows of a convolution: one row of a window at a time, its tests outside the inner loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import s_tir

from bscompile.targets.cpu.schedules import loops

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

_AXES = 6  # batch, output row, output column, channel, window row, window column
_UNROLLED = 16


def apply(func: Any, hardware: HardwareSpec) -> Any:
    """Take ``im2col`` alone: fused into something else it is any other element-wise code."""
    sch, blocks = loops.start(func)
    if len(blocks) != 1 or sch.get(blocks[0]).name_hint != "im2col":
        return None
    nest = sch.get_loops(blocks[0])
    if len(nest) != _AXES:
        return None
    size = loops.work(sch, nest)
    width = loops.extent(sch, nest[-1])
    try:
        if width is not None and width % (hardware.vector_bytes // 4) == 0:
            _, vector = sch.split(nest[-1], [None, hardware.vector_bytes // 4])
            sch.vectorize(vector)
        elif width is not None and width <= _UNROLLED:
            sch.unroll(nest[-1])
        if size >= loops.PARALLEL_ELEMENTS:
            sch.parallel(sch.fuse(*nest[:2]))
    except s_tir.ScheduleError:
        return None
    return loops.finish(sch, func)

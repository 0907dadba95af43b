"""Functions without a reduction: one nest for each output, vectorised along its last axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import s_tir

from bscompile.targets.cpu.schedules import loops

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

_FEW = 4  # elements of a last axis that is no vector


def apply(func: Any, hardware: HardwareSpec) -> Any:
    """Inline every step into those that write; None when one reduces or cannot be inlined."""
    sch, blocks = loops.start(func)
    if not blocks or any(loops.is_reduction(sch, b) for b in blocks):
        return None
    outputs = [block for block in blocks if not sch.get_consumers(block)]
    try:
        for block in blocks:
            if block not in outputs:
                sch.compute_inline(block)
        for block in outputs:
            _nest(sch, block, hardware)
    except s_tir.ScheduleError:
        return None
    return loops.finish(sch, func)


def _nest(sch: Any, block: Any, hardware: HardwareSpec) -> None:
    """Vectors along the last axis, parallel along the others where that pays."""
    nest = sch.get_loops(block)
    if not nest:
        return
    width = hardware.vector_bytes // 4
    size = loops.work(sch, nest)
    last = loops.extent(sch, nest[-1])
    if last is not None and last <= _FEW and len(nest) > 2:
        # Such as the colours of an image: whole lines, without a division for each element.
        sch.unroll(nest[-1])
        if size >= loops.PARALLEL_ELEMENTS:
            sch.parallel(sch.fuse(*nest[:-2]))
        return
    if last is not None and last < width and len(nest) > 1:
        nest = [sch.fuse(*nest)]
    outer, vector = sch.split(nest[-1], [None, width])
    sch.vectorize(vector)
    if size >= loops.PARALLEL_ELEMENTS:
        sch.parallel(sch.fuse(*nest[:-1], outer))

"""Reductions whose result keeps the last axis: vectors along it, whatever is reduced outside.

Pools and means over images with channels last, maxima over leading axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import s_tir

from bscompile.targets.cpu.schedules import loops

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec


def apply(func: Any, hardware: HardwareSpec) -> Any:
    """One reduction, what it reads inlined; what follows it computes it vector by vector."""
    sch, blocks = loops.start(func)
    reducing = [i for i, block in enumerate(blocks) if loops.is_reduction(sch, block)]
    if len(reducing) != 1:
        return None
    before, block, after = blocks[: reducing[0]], blocks[reducing[0]], blocks[reducing[0] + 1 :]
    width = _width(sch, blocks[-1], hardware.vector_bytes // 4)
    if width == 1:
        return None
    try:
        for step in (*before, *after[:-1]):
            sch.compute_inline(step)
        size = loops.work(sch, sch.get_loops(block))
        *outer, last = sch.get_loops(after[-1]) if after else _spatial(sch, block)
        rest, lanes = sch.split(last, [None, width])
        outer.append(rest)
        if after:
            sch.vectorize(lanes)
            sch.compute_at(block, rest)
            lanes = sch.get_loops(block)[len(outer)]
        reduced = sch.get_loops(block)[len(outer) + 1 :]
        sch.reorder(*reduced, lanes)
        # The order matters: once it has a start of its own, nothing may be done to a reduction.
        sch.vectorize(lanes)
        if size >= loops.PARALLEL_ELEMENTS:
            sch.parallel(sch.fuse(*outer))
        sch.decompose_reduction(block, reduced[0])
    except (s_tir.ScheduleError, IndexError):
        return None
    return loops.finish(sch, func)


def _spatial(sch: Any, block: Any) -> list[Any]:
    """The loops of a block that do not reduce; none where axes and loops do not match."""
    kinds = [loops.reduces(iv) for iv in sch.get(block).iter_vars]
    nest = sch.get_loops(block)
    if len(kinds) != len(nest):  # such as a block that runs once
        return []
    return [loop for loop, reduced in zip(nest, kinds, strict=True) if not reduced]


def _width(sch: Any, block: Any, most: int) -> int:
    """Elements of a vector: the last axis of the result, or a power of two that divides it.

    1 where the last axis is reduced, or too short or odd for vectors.
    """
    spatial = _spatial(sch, block)
    length = loops.extent(sch, spatial[-1]) if spatial else None
    if length is None:
        return 1
    if 4 <= length <= most:
        return length
    width = most
    while width > 1 and length % width:
        width //= 2
    return width if width >= 4 else 1

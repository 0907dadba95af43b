"""What the rules share: looking at blocks, cutting loops into vectors and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import s_tir, tirx

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

#: Elements of work below which a second thread costs more than it saves.
PARALLEL_ELEMENTS = 16384
_REDUCTION = 2  # tirx.IterVar.CommReduce


def start(func: Any) -> tuple[Any, list[Any]]:
    """A schedule of one function and its blocks in order; none for code without blocks."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}), error_render_level="none")
    body = func.body
    if not isinstance(body, s_tir.SBlockRealize) or body.block.name_hint != "root":
        return sch, []
    return sch, sch.get_child_blocks(sch.get_sblock("root"))


def finish(sch: Any, func: Any) -> Any:
    """The scheduled function with the attributes of the original."""
    result = sch.mod["main"]
    return result.with_attrs(func.attrs) if func.attrs else result


def is_reduction(sch: Any, block: Any) -> bool:
    """Whether a block sums, or otherwise reduces, over some axis."""
    return any(reduces(iv) for iv in sch.get(block).iter_vars)


def reduces(iter_var: Any) -> bool:
    """Whether an axis of a block is summed, or otherwise reduced, over."""
    return int(iter_var.iter_type) == _REDUCTION


def extent(sch: Any, loop: Any) -> int | None:
    """A loop's length, None when it is symbolic."""
    value = sch.get(loop).extent
    return int(value.value) if isinstance(value, tirx.IntImm) else None


def work(sch: Any, loops: list[Any]) -> int:
    """How often a nest runs; symbolic loops are taken as long."""
    total = 1
    for loop in loops:
        length = extent(sch, loop)
        total *= 128 if length is None else length
    return total


def lanes(func: Any, hardware: HardwareSpec) -> int:
    """Elements of one vector of the function's widest type."""
    widths = [
        int(buffer.dtype.bits) // 8 or 1
        for buffer in func.buffer_map.values()
        if hasattr(buffer.dtype, "bits")
    ]
    return int(hardware.vector_bytes // max(widths, default=4))


def vectorise_last(sch: Any, block: Any, width: int) -> None:
    """Cut a block's last loop into vectors; a rest is peeled off later."""
    last = sch.get_loops(block)[-1]
    length = extent(sch, last)
    if length is not None and length < width:
        if length > 1:
            sch.vectorize(last)
        return
    _, vector = sch.split(last, [None, width])
    sch.vectorize(vector)

"""Converters of operators that read or write where a tensor of indices points.

TVM's trust the indices. Here one outside its axis is clamped to it, as in Gather, so that no
caller can read or write foreign memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax, te, tirx

from bscompile.targets.lowering.shape_converters import inside, same_size, shape_of

if TYPE_CHECKING:
    from bscompile.targets.lowering.importer import NodeView


def gather_elements(view: NodeView) -> Any:
    """GatherElements: along one axis, an index for each element."""
    data, indices = view.expr(0), view.expr(1)
    axis = _axis(view, data)
    loose = [
        not same_size(a, b) for a, b in zip(shape_of(data), shape_of(indices), strict=True)
    ]  # an axis on which the indices may reach further than the data

    def compute(table: Any, index: Any) -> Any:
        def read(i: Any, d: int, at: tuple[Any, ...]) -> Any:
            if d == axis:
                return inside(index(*at).astype("int64"), table.shape[d])
            return inside(i, table.shape[d]) if loose[d] else i

        def element(*at: Any) -> Any:
            return table(*(read(i, d, at) for d, i in enumerate(at)))

        return te.compute(index.shape, element, name="gather_elements")

    return view.bb.emit_te(compute, data, indices)


def gather_nd(view: NodeView) -> Any:
    """GatherND: the last axis of the indices holds a position in the data."""
    data, indices = view.expr(0), view.expr(1)
    batch = view.attributes.get("batch_dims", 0)
    _match(view, shape_of(indices)[:batch], shape_of(data)[:batch], "batch dimensions")
    count = _coordinates(indices)

    def compute(table: Any, index: Any) -> Any:
        prefix = len(index.shape) - 1

        def element(*at: Any) -> Any:
            where = [
                inside(index(*at[:prefix], j).astype("int64"), table.shape[batch + j])
                for j in range(count)
            ]
            return table(*at[:batch], *where, *at[prefix:])

        shape = [*index.shape[:prefix], *table.shape[batch + count :]]
        return te.compute(shape, element, name="gather_nd")

    return view.bb.emit_te(compute, data, indices)


def scatter_elements(view: NodeView) -> Any:
    """ScatterElements: along one axis, an index for each update.

    Raises:
        ValueError: TVM's loop would misplace updates that leave out the end of an inner axis.
    """
    data, indices, updates = (view.expr(i) for i in range(3))
    axis = _axis(view, data)
    sizes, wanted = shape_of(indices), shape_of(data)
    _match(view, shape_of(updates), sizes, "updates")
    for d, (have, want) in enumerate(zip(sizes, wanted, strict=True)):
        outer = d in (0, axis + 1) and _is_fixed(have) and _is_fixed(want)
        if d != axis and not (outer and int(have) <= int(want)):
            _match(view, [have], [want], f"indices on axis {d}")

    def compute(index: Any, table: Any) -> Any:
        def element(*at: Any) -> Any:
            return inside(index(*at).astype("int64"), table.shape[axis])

        return te.compute(index.shape, element, name="inside")

    safe = view.bb.emit_te(compute, indices, data)
    return relax.op.scatter_elements(data, safe, updates, axis=axis, reduction=_reduction(view))


def scatter_nd(view: NodeView) -> Any:
    """ScatterND: the last axis of the indices holds a position in the data."""
    data, indices, updates = (view.expr(i) for i in range(3))
    count = _coordinates(indices)
    wanted = [*shape_of(indices)[:-1], *shape_of(data)[count:]]
    _match(view, shape_of(updates), wanted, "updates")
    # TVM wants to see that the sizes are the same, also where the running model has compared them.
    updates = view.bb.match_cast(updates, relax.TensorType(wanted, updates.ty.dtype))

    def compute(index: Any, table: Any) -> Any:
        def element(*at: Any) -> Any:
            position, which = index(*at).astype("int64"), at[-1]
            safe = inside(position, table.shape[count - 1])
            for j in range(count - 1):
                safe = tirx.Select(which == j, inside(position, table.shape[j]), safe)
            return safe

        return te.compute(index.shape, element, name="inside")

    safe = view.bb.emit_te(compute, indices, data)
    return relax.op.scatter_nd(data, safe, updates, _reduction(view))


def one_hot(view: NodeView) -> Any:
    """OneHot: ``values`` is [off, on]; an index outside of [-depth, depth) marks nothing."""
    bb, indices, values = view.bb, view.expr(0), view.expr(2)
    depth = int(view.known(1).numpy().reshape(()))  # type: ignore[union-attr]  # see limits.py
    rank = len(shape_of(indices)) + 1
    axis = int(view.attributes.get("axis", -1)) % rank
    index = bb.emit(relax.op.astype(indices, "int64"))
    negative = bb.emit(relax.op.less(index, relax.const(0, "int64")))
    moved = bb.emit(relax.op.add(index, relax.const(depth, "int64")))
    index = bb.emit(relax.op.where(negative, moved, index))
    places = np.arange(depth, dtype=np.int64).reshape([-1] + [1] * (rank - 1 - axis))
    column = bb.emit(relax.op.expand_dims(index, axis))
    marked = bb.emit(relax.op.equal(column, relax.const(places, "int64")))
    off, on = (bb.emit(relax.op.take(values, relax.const(i, "int64"), axis=0)) for i in (0, 1))
    return relax.op.where(marked, on, off)


def _axis(view: NodeView, data: Any) -> int:
    return int(view.attributes.get("axis", 0)) % len(shape_of(data))


def _reduction(view: NodeView) -> str:
    asked = view.attributes.get("reduction", b"none").decode()
    return "update" if asked == "none" else asked


def _is_fixed(size: Any) -> bool:
    return isinstance(size, tirx.IntImm)


def _coordinates(indices: Any) -> int:
    """How many axes one position of GatherND or ScatterND names."""
    last = shape_of(indices)[-1]
    if not _is_fixed(last):
        raise ValueError("the last axis of its indices is symbolic")
    return int(last)


def _match(view: NodeView, have: list[Any], want: list[Any], what: str) -> None:
    """Compare sizes now, or let the running model do it where they are symbolic."""
    if len(have) != len(want):
        raise ValueError(f"its {what} have {len(have)} axes, not {len(want)}")
    for a, b in zip(have, want, strict=True):
        if same_size(a, b):
            continue
        if _is_fixed(a) and _is_fixed(b):
            raise ValueError(f"its {what} are {int(a)} long where {int(b)} is wanted")
        view.bb.match_cast(view.bb.emit(relax.ShapeExpr([a])), relax.ShapeType([b]))

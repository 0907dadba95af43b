"""Converters of operators that take sizes, positions or indices.

Where TVM's would materialise a symbolic size at run time or trust an index, these keep the
size symbolic and clamp the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, sym, te, tirx

from bscompile.sizes import UncertainError
from bscompile.targets.lowering.shape_values import TIR, plain

if TYPE_CHECKING:
    from bscompile.targets.lowering.importer import NodeView


def _int64(value: Any) -> Any:
    return value if isinstance(value, tvm.ir.Expr) else tirx.const(int(value), "int64")


def simplify(value: Any) -> Any:
    """A size in its simplest form."""
    return sym.Analyzer().simplify(_int64(value))


def product(sizes: list[Any]) -> Any:
    """The number of elements."""
    total: Any = tirx.const(1, "int64")
    for size in sizes:
        total = total * size
    return simplify(total)


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are surely equal."""
    return bool(sym.Analyzer().can_prove_equal(_int64(a), _int64(b)))


def shape_of(expr: Any) -> list[Any]:
    """The sizes of a tensor.

    Raises:
        ValueError: its rank is unknown.
    """
    if expr.ty.shape is None:
        raise ValueError("its input has an unknown number of dimensions")
    return list(expr.ty.shape.values)


def reshaped(bb: relax.BlockBuilder, expr: Any, sizes: list[Any]) -> Any:
    """``expr`` with other sizes; itself where they are the same."""
    old = shape_of(expr)
    if len(old) == len(sizes) and all(same_size(a, b) for a, b in zip(old, sizes, strict=True)):
        return expr
    return bb.emit(relax.op.reshape(expr, relax.ShapeExpr([_int64(s) for s in sizes])))


def reshape(view: NodeView) -> Any:
    """Reshape: 0 copies a size, -1 takes what is left."""
    data, shape = view.expr(0), view.known(1)
    if shape is None:
        sizes = _runtime_shape(view, _filled_shape(view, data))
        _check_total(view.bb, list(sizes.values), shape_of(data))
        return relax.op.reshape(data, sizes)
    old = shape_of(data)
    wanted = shape.ints()
    keeps_zero = view.attributes.get("allowzero", 0)
    sizes = [
        old[i] if isinstance(v, int) and v == 0 and not keeps_zero else v
        for i, v in enumerate(wanted)
    ]
    if -1 in [s for s in sizes if isinstance(s, int)]:
        hole = next(i for i, s in enumerate(sizes) if isinstance(s, int) and s == -1)
        rest = product([_int64(s) for i, s in enumerate(sizes) if i != hole])
        sizes[hole] = simplify(tirx.floordiv(product(old), rest))
    _check_total(view.bb, sizes, old)
    return reshaped(view.bb, data, sizes)


def _check_total(bb: relax.BlockBuilder, sizes: list[Any], old: list[Any]) -> None:
    """Let the running model compare two totals, unless they are surely equal.

    A view of more than there is would read foreign memory, and one of less would lose a rest.
    """
    new, total = product([_int64(size) for size in sizes]), product(old)
    if not same_size(new, total):
        bb.match_cast(bb.emit(relax.ShapeExpr([new])), relax.ShapeType([total]))


def _filled_shape(view: NodeView, data: Any) -> Any:
    """Reshape's second input with 0 and -1 replaced while the model runs: int64 [rank]."""
    bb, shape, old = view.bb, view.expr(1), shape_of(data)
    zero, one, hole = (relax.const(v, "int64") for v in (0, 1, -1))
    if not view.attributes.get("allowzero", 0):
        rank = int(shape_of(shape)[0])
        same = [*old, *[tirx.const(0, "int64")] * rank][:rank]
        kept = bb.emit(relax.op.shape_to_tensor(relax.ShapeExpr(same)))
        shape = bb.emit(relax.op.where(relax.op.equal(shape, zero), kept, shape))
    is_hole = bb.emit(relax.op.equal(shape, hole))
    rest = bb.emit(relax.op.prod(relax.op.where(is_hole, one, shape)))
    total = bb.emit(relax.op.shape_to_tensor(relax.ShapeExpr([product(old)])))
    # A rest of zero is no valid shape; it must not divide.
    left = relax.op.floor_divide(total, relax.op.maximum(rest, one))
    filled = relax.op.where(is_hole, left, shape)
    return bb.emit(relax.op.maximum(filled, zero))  # what is still negative fits nothing


def _runtime_shape(view: NodeView, shape: Any) -> Any:
    """Sizes that only the running model knows, as fresh symbols."""
    rank = int(shape_of(shape)[0])
    sizes = view.bb.emit(relax.op.tensor_to_shape(shape))
    fresh = [tirx.Var(f"size_{i}", "int64") for i in range(rank)]
    view.bb.match_cast(sizes, relax.ShapeType(fresh))
    return relax.ShapeExpr(fresh)


def expand(view: NodeView) -> Any:
    """Expand: broadcast both ways between the data and the wanted sizes."""
    data, shape = view.expr(0), view.known(1)
    if shape is None:
        wanted = list(_runtime_shape(view, view.expr(1)).values)
    else:
        wanted = [_int64(v) for v in shape.ints()]
    old = shape_of(data)
    rank = max(len(old), len(wanted))
    one = tirx.const(1, "int64")
    padded = [one] * (rank - len(old)) + old
    wanted = [one] * (rank - len(wanted)) + wanted
    sizes = [_broadcast(a, b) for a, b in zip(padded, wanted, strict=True)]
    if len(old) == rank and all(same_size(a, b) for a, b in zip(old, sizes, strict=True)):
        return data
    return relax.op.broadcast_to(data, relax.ShapeExpr(sizes))


def _broadcast(have: Any, want: Any) -> Any:
    if same_size(want, 1) or same_size(have, want):
        return have
    if same_size(have, 1):
        return want
    raise ValueError(f"size {plain(have)} cannot be expanded to {plain(want)} for certain")


def constant_of_shape(view: NodeView) -> Any:
    """ConstantOfShape, where the shape is symbolic or large."""
    from onnx import numpy_helper

    fill = view.attributes.get("value")
    value, dtype = 0.0, "float32"
    if fill is not None:
        array = numpy_helper.to_array(fill)
        value, dtype = array.item(), array.dtype.name
    shape = view.known(0)
    if shape is None:
        sizes = _runtime_shape(view, view.expr(0))
    else:
        sizes = relax.ShapeExpr([_int64(v) for v in shape.ints()])
    return relax.op.full(sizes, relax.const(value, dtype), dtype)


def range_(view: NodeView) -> Any:
    """Range: start + i step, for symbolic integers."""
    inputs = [view.known(i) for i in range(3)]
    if any(v is None for v in inputs):
        raise ValueError("its limits are computed from data, so its length is not known")
    start, limit, step = (v.ints()[0] for v in inputs if v is not None)
    dtype = inputs[0].dtype  # type: ignore[union-attr]
    if isinstance(step, tvm.ir.Expr) or not dtype.startswith("int"):
        raise ValueError("only integer ranges with a constant step can have symbolic limits")
    distance = _int64(limit) - _int64(start) if step > 0 else _int64(start) - _int64(limit)
    count = simplify(tirx.floordiv(distance + (abs(step) - 1), tirx.const(abs(step), "int64")))

    def compute(first: Any, length: Any) -> Any:
        return te.compute((length,), lambda i: (first + i * step).astype(dtype), name="range")

    return view.bb.emit_te(compute, _int64(start), count)


def gather(view: NodeView) -> Any:
    """Gather; an index outside the axis is clamped to it, never read through."""
    axis = view.attributes.get("axis", 0)
    data, indices = view.expr(0), view.expr(1)
    rank = len(shape_of(data))
    axis = axis + rank if axis < 0 else axis

    def compute(table: Any, index: Any) -> Any:
        index_rank = len(index.shape)
        size = table.shape[axis]
        shape = [*table.shape[:axis], *index.shape, *table.shape[axis + 1 :]]

        def element(*at: Any) -> Any:
            position = index(*at[axis : axis + index_rank]).astype("int64")
            return table(*at[:axis], inside(position, size), *at[axis + index_rank :])

        return te.compute(shape, element, name="gather")

    return view.bb.emit_te(compute, data, indices)


def inside(position: Any, size: Any) -> Any:
    """An int64 index, negative ones counted from the end, clamped to ``size``."""
    size = size.astype("int64")
    counted = tirx.Select(position < 0, position + size, position)
    return tirx.max(tirx.min(counted, size - 1), tirx.const(0, "int64"))


def slice_(view: NodeView) -> Any:
    """Slice with known positions, which may be symbolic; reads are clamped to the data."""
    data = view.expr(0)
    old = shape_of(data)
    positions = [view.known(i) for i in range(1, 5)]
    if any(p is None and view.has(i + 1) for i, p in enumerate(positions)):
        raise ValueError("its positions are computed from data")
    assert positions[0] is not None
    assert positions[1] is not None
    starts, ends = positions[0].ints(), positions[1].ints()
    axes = positions[2].ints() if positions[2] else list(range(len(starts)))
    steps = positions[3].ints() if positions[3] else [1] * len(starts)
    first: dict[int, tuple[Any, int]] = {}
    sizes = list(old)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = axis + len(old) if axis < 0 else axis
        low = _position(start, old[axis], step)
        high = _position(end, old[axis], step, is_end=True)
        distance = high - low if step > 0 else low - high
        count = simplify(tirx.floordiv(distance + (abs(step) - 1), tirx.const(abs(step), "int64")))
        first[axis] = (low, step)
        sizes[axis] = tirx.const(0, "int64") if _is_negative(count) else count

    proven = {
        axis
        for axis, (low, _) in first.items()
        if all(isinstance(v, tirx.IntImm) for v in (low, sizes[axis], old[axis]))
    }
    axes, steps = list(first), [step for _, step in first.values()]

    # Sizes go in as arguments: the builder renames the symbols of what it compiles.
    def compute(source: Any, lows: list[Any], shape: list[Any]) -> Any:
        def read(i: Any, axis: int) -> Any:
            if axis not in axes:
                return i
            which = axes.index(axis)
            at = lows[which] + i * steps[which]
            if axis in proven:
                return at
            return tirx.max(tirx.min(at, source.shape[axis] - 1), tirx.const(0, "int64"))

        def element(*at: Any) -> Any:
            return source(*(read(i, axis) for axis, i in enumerate(at)))

        return te.compute(shape, element, name="slice")

    return view.bb.emit_te(compute, data, [low for low, _ in first.values()], sizes)


def _is_negative(count: Any) -> bool:
    return isinstance(count, tirx.IntImm) and int(count.value) < 0


def _position(value: Any, size: Any, step: int, is_end: bool = False) -> Any:
    """Where a slice starts or ends on an axis of ``size``: counted from the end, and clamped."""
    low = -1 if step < 0 and is_end else 0
    high = size - 1 if step < 0 and not is_end else size
    if step < 0 and is_end and isinstance(value, int) and value < -(2**31):
        return tirx.const(-1, "int64")
    try:
        if not TIR.certain(">=", value, 0):
            value = simplify(_int64(value) + size)
        if not TIR.certain(">=", value, low):
            return tirx.const(low, "int64")
        return high if TIR.certain(">=", value, high) else simplify(value)
    except UncertainError:
        return simplify(value)

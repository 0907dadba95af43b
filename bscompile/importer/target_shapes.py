"""Shapes that a tensor of sizes decides about: what onnx infers only where it is a constant.

And those of operators that onnx infers by expanding them, which it cannot do for one alone.

Each rule takes the shapes of the inputs, their values where those are known, the attributes and
the algebra of the sizes. It gives the shape of the first output, a size that it cannot say as
None, or None for all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from bscompile.sizes import Known, UncertainError
from bscompile.sizes.symbols import SympyAlgebra

Dim = Any  # an int, an expression, or None where nothing is known
Dims = list[Dim]
Attributes = Mapping[str, Any]
Rule = Callable[
    [Sequence[Dims | None], Sequence[Known | None], Attributes, SympyAlgebra], Dims | None
]


def _reshape(
    shapes: Sequence[Dims | None], values: Sequence[Known | None], attributes: Attributes,
    algebra: SympyAlgebra,
) -> Dims | None:  # fmt: skip
    target, old = values[1], shapes[0]
    if target is None or target.array.ndim != 1:
        return None
    keeps_zero = attributes.get("allowzero", 0)
    sizes = [
        (old[i] if old is not None and i < len(old) else None)
        if isinstance(size, int) and size == 0 and not keeps_zero
        else size
        for i, size in enumerate(target.ints())
    ]
    holes = [i for i, size in enumerate(sizes) if isinstance(size, int) and size == -1]
    if len(holes) == 1:
        others = [size for i, size in enumerate(sizes) if i != holes[0]]
        sizes[holes[0]] = _quotient(old, others, algebra)
    return sizes


def _quotient(whole: Dims | None, others: Dims, algebra: SympyAlgebra) -> Dim:
    if whole is None or any(size is None for size in [*whole, *others]):
        return None
    total, rest = (math.prod(sizes) for sizes in (whole, others))
    try:
        size = algebra.quotient(total, rest)
    except (UncertainError, ZeroDivisionError):
        return None
    return size if isinstance(size, int) else algebra.simplify(size)


def _expand(
    shapes: Sequence[Dims | None], values: Sequence[Known | None], _: Attributes, __: SympyAlgebra
) -> Dims | None:
    target, old = values[1], shapes[0]
    if target is None or old is None:
        return None
    wanted = target.ints()
    rank = max(len(wanted), len(old))
    pairs = zip([1] * (rank - len(old)) + old, [1] * (rank - len(wanted)) + wanted, strict=True)
    return [_broadcast(have, want) for have, want in pairs]


def _broadcast(a: Dim, b: Dim) -> Dim:
    if a is None or b is None:
        return None
    if a == b or b == 1:
        return a
    return b if a == 1 else None


def _range(
    _: Sequence[Dims | None], values: Sequence[Known | None], __: Attributes, algebra: SympyAlgebra
) -> Dims | None:
    if any(v is None or v.array.size != 1 for v in values):
        return None
    start, limit, step = (v.ints()[0] for v in values if v is not None)
    if not (isinstance(step, int) and step == 1):
        return None
    return [_distance(start, limit, algebra)]


def _distance(low: Dim, high: Dim, algebra: SympyAlgebra) -> Dim:
    """High - low, at least 0; None where that is not certain."""
    try:
        if algebra.certain(">=", low, high):
            return 0
    except UncertainError:
        pass
    try:
        if algebra.certain(">=", high, low):
            return algebra.simplify(high - low) if not isinstance(high - low, int) else high - low
    except UncertainError:
        pass
    return None


def _slice(
    shapes: Sequence[Dims | None],
    values: Sequence[Known | None],
    _: Attributes,
    algebra: SympyAlgebra,
) -> Dims | None:
    old = shapes[0]
    if old is None or any(v is None for v in values[1:3]):
        return None
    starts, ends = (v.ints() for v in values[1:3] if v is not None)
    given = [*values[3:], None, None]
    if any(given[i] is None and len(shapes) > 3 + i and shapes[3 + i] is not None for i in (0, 1)):
        return None
    axes = given[0].ints() if given[0] is not None else list(range(len(starts)))
    steps = given[1].ints() if given[1] is not None else [1] * len(starts)
    sizes = list(old)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = old[axis]
        ours = None
        if size is not None and step == 1:
            low, high = (_position(end_, size, algebra) for end_ in (start, end))
            if low is not None and high is not None:
                ours = _distance(low, high, algebra)
        sizes[axis] = ours
    return sizes


def _position(value: Dim, size: Dim, algebra: SympyAlgebra) -> Dim:
    """Where a slice starts or ends, between 0 and ``size``; None where that is not certain."""
    try:
        if not algebra.certain(">=", value, 0):
            value = value + size
        if not algebra.certain(">=", value, 0):
            return 0
    except UncertainError:
        return None
    for sign, position in ((">=", size), ("<=", value)):
        try:
            if algebra.certain(sign, value, size):
                return position
        except UncertainError:
            continue
    return algebra.smaller(value, size)


def _elementwise(
    shapes: Sequence[Dims | None], _: Sequence[Known | None], __: Attributes, algebra: SympyAlgebra
) -> Dims | None:
    """Broadcast, where min(n, 512) stands for n as well: any other size would fail."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(len(shape) for shape in known)
    aligned = [[1] * (rank - len(shape)) + shape for shape in known]
    return [reduce(lambda a, b: _one(a, b, algebra), sizes) for sizes in zip(*aligned, strict=True)]


def _one(a: Dim, b: Dim, algebra: SympyAlgebra) -> Dim:
    if a is not None and b is not None:
        if algebra.is_at_most(a, b):
            return b
        if algebra.is_at_most(b, a):
            return a
    return _broadcast(a, b)


def _concat(
    shapes: Sequence[Dims | None], _: Sequence[Known | None], attributes: Attributes,
    algebra: SympyAlgebra,
) -> Dims | None:  # fmt: skip
    if any(shape is None for shape in shapes):
        return None
    parts = [shape for shape in shapes if shape is not None]
    axis = attributes["axis"] % len(parts[0])
    sizes: Dims = [None] * len(parts[0])
    along = [part[axis] for part in parts]
    if all(size is not None for size in along):
        total = sum(along)
        sizes[axis] = total if isinstance(total, int) else algebra.simplify(total)
    return sizes


def _same(
    shapes: Sequence[Dims | None], _: Sequence[Known | None], __: Attributes, ___: SympyAlgebra
) -> Dims | None:
    return shapes[0]


def _constant_of_shape(
    _: Sequence[Dims | None], values: Sequence[Known | None], __: Attributes, ___: SympyAlgebra
) -> Dims | None:
    return None if values[0] is None else values[0].ints()


def _tile(
    shapes: Sequence[Dims | None],
    values: Sequence[Known | None],
    _: Attributes,
    algebra: SympyAlgebra,
) -> Dims | None:
    old, repeats = shapes[0], values[1]
    if old is None or repeats is None or any(size is None for size in old):
        return None
    sizes = [size * times for size, times in zip(old, repeats.ints(), strict=True)]
    return [size if isinstance(size, int) else algebra.simplify(size) for size in sizes]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Div", "Mul", "Sub", "Where"), _elementwise),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Gelu": _same,
    "LayerNormalization": _same,
    "RMSNormalization": _same,
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "Tile": _tile,
}

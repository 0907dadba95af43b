"""Small tensors whose elements are known while compiling: constants and symbolic sizes.

Exporters compute shapes in the graph: Shape, Gather, Concat, Mul, Range, Where and so on. Run
at inference time they would hide every size from the compiler. Here they are evaluated on
arrays of Python numbers and TIR expressions, so that ``Shape(x)[0] * 12`` stays the expression
``batch * 12``. An operator or a question («is batch equal to -1?») without a certain answer
gives None, and the operator is then compiled like any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import sym, tirx

#: Larger tensors are data, not shapes.
MAX_ELEMENTS = 512

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor known while compiling.

    Attributes:
        array: object [...]: each an int, float or bool, or an int64 TIR expression.
        dtype: numpy's name of the element type.
    """

    array: Array
    dtype: str

    @property
    def is_constant(self) -> bool:
        """Whether no element is symbolic."""
        return not any(isinstance(v, tvm.ir.Expr) for v in self.array.flat)

    def numpy(self) -> Array:
        """The plain array; only for constants."""
        return self.array.astype(self.dtype)

    def ints(self) -> list[Any]:
        """The elements in order, for an operator that takes a list of sizes."""
        return list(self.array.flat)


def known(values: Any, dtype: str) -> Known | None:
    """Wrap an array or nested values, simplifying each element; None when there are too many."""
    array = values if isinstance(values, np.ndarray) else np.array(values, dtype=object)
    if array.size > MAX_ELEMENTS:
        return None
    result = np.empty(array.shape, dtype=object)
    for index in np.ndindex(array.shape):
        result[index] = _simplified(array[index])
    return Known(result, dtype)


def evaluate(
    op_type: str, inputs: Sequence[Known | None], attributes: Attributes
) -> tuple[Known, ...] | None:
    """The outputs of an ONNX operator, or None when they are not certain.

    Args:
        op_type: An operator of the standard domain.
        inputs: All known; None stands for an optional input that is absent.
        attributes: As the importer's converters take them.
    """
    rule = _RULES.get(op_type)
    if rule is None or not inputs:
        return None
    try:
        result = rule(inputs, attributes)
    except (UncertainError, ZeroDivisionError, ValueError, TypeError, IndexError):
        return None  # the ordinary converter then decides, or says what is wrong
    if result is None:
        return None
    return result if isinstance(result, tuple) else (result,)


class UncertainError(Exception):
    """The answer depends on a symbolic size."""


def plain(size: Any) -> str:
    """A size as people write it: ``batch * 12``."""
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(size))


def _simplified(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tvm.ir.Expr):
        value = sym.Analyzer().simplify(value)
        return int(value.value) if isinstance(value, tirx.IntImm) else value
    return value


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, tvm.ir.Expr)


def _expression(value: Any) -> Any:
    return value if _is_symbolic(value) else tirx.const(int(value), "int64")


def certain(make: Callable[[Any, Any], Any], a: Any, b: Any) -> bool:
    """The answer to a comparison, the same for all sizes of at least one.

    Raises:
        UncertainError: it depends on the sizes.
    """
    analyzer = sym.Analyzer()
    a, b = _expression(a), _expression(b)
    for value in (a, b):
        for var in tirx.analysis.undefined_vars(value):
            sizes = tvm.ir.Range(tirx.const(1, "int64"), tirx.const(2**31, "int64"))
            analyzer.bind(var, sizes, allow_override=True)
    answer = analyzer.simplify(make(a, b))
    if isinstance(answer, tirx.IntImm):
        return bool(answer.value)
    raise UncertainError


# ---------------------------------------------------------------- element by element


def _elementwise(function: Callable[..., Any], dtype: str | None = None) -> Callable[..., Any]:
    def rule(inputs: Sequence[Known], _: Attributes) -> Known | None:
        arrays = [v.array for v in inputs]
        result = np.frompyfunc(function, len(arrays), 1)(*arrays)
        return known(np.asarray(result, dtype=object), dtype or inputs[-1].dtype)

    return rule


def _compare(plain: Callable[[Any, Any], Any], make: Callable[[Any, Any], Any]) -> Any:
    def function(a: Any, b: Any) -> bool:
        if _is_symbolic(a) or _is_symbolic(b):
            return certain(make, a, b)
        return bool(plain(a, b))

    return _elementwise(function, "bool")


def _divide(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    def integers(a: Any, b: Any) -> Any:
        if _is_symbolic(a) or _is_symbolic(b):
            return tirx.truncdiv(_expression(a), _expression(b))
        return int(math.copysign(abs(a) // abs(b), a * b)) if a * b else a // b

    floating = np.issubdtype(np.dtype(inputs[0].dtype), np.floating)
    result: Known | None = _elementwise((lambda a, b: a / b) if floating else integers)(
        inputs, attributes
    )
    return result


def _modulo(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    if attributes.get("fmod", 0) or not np.issubdtype(np.dtype(inputs[0].dtype), np.integer):
        return None
    result: Known | None = _elementwise(lambda a, b: a % b)(inputs, attributes)
    return result


def _extreme(inputs: Sequence[Known], larger: bool) -> Known | None:
    def pick(a: Any, b: Any) -> Any:
        if _is_symbolic(a) or _is_symbolic(b):
            first = certain(tirx.GE if larger else tirx.LE, a, b)
            return a if first else b
        return max(a, b) if larger else min(a, b)

    result = inputs[0].array
    for other in inputs[1:]:
        result = np.frompyfunc(pick, 2, 1)(result, other.array)
    return known(np.asarray(result, dtype=object), inputs[0].dtype)


def _number_only(function: Callable[[Any], Any]) -> Callable[..., Any]:
    def checked(value: Any) -> Any:
        if _is_symbolic(value):
            raise UncertainError
        return function(value)

    return _elementwise(checked)


def _cast(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    import onnx

    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
    source = inputs[0]
    if source.is_constant:
        return known(source.numpy().astype(dtype), dtype)
    # A symbolic size stays one only while it is an integer.
    return known(source.array, dtype) if dtype in ("int64", "int32") else None


def _where(inputs: Sequence[Known], _: Attributes) -> Known | None:
    chosen = np.frompyfunc(lambda c, a, b: a if c else b, 3, 1)(*(v.array for v in inputs))
    return known(np.asarray(chosen, dtype=object), inputs[1].dtype)


# ---------------------------------------------------------------- moving elements


def _axes(inputs: Sequence[Known | None], attributes: Attributes) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(v) for v in inputs[1].ints()]
    return list(attributes["axes"]) if "axes" in attributes else None


def _gather(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    data, indices = inputs
    picked = np.take(data.array, indices.numpy(), axis=attributes.get("axis", 0))
    return known(np.asarray(picked, dtype=object), data.dtype)


def _slice(inputs: Sequence[Known | None], _: Attributes) -> Known | None:
    data = inputs[0]
    assert data is not None
    starts, ends = (v.ints() for v in inputs[1:3] if v is not None)
    axes = inputs[3].ints() if len(inputs) > 3 and inputs[3] else list(range(len(starts)))
    steps = inputs[4].ints() if len(inputs) > 4 and inputs[4] else [1] * len(starts)
    window = [slice(None)] * data.array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -data.array.shape[axis] else end
        window[axis] = slice(start, stop, step)
    return known(data.array[tuple(window)], data.dtype)


def _concat(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    joined = np.concatenate([v.array for v in inputs], axis=attributes["axis"])
    return known(joined, inputs[0].dtype)


def _squeeze(inputs: Sequence[Known | None], attributes: Attributes) -> Known | None:
    data, axes = inputs[0], _axes(inputs, attributes)
    assert data is not None
    return known(np.squeeze(data.array, None if axes is None else tuple(axes)), data.dtype)


def _unsqueeze(inputs: Sequence[Known | None], attributes: Attributes) -> Known | None:
    data, axes = inputs[0], _axes(inputs, attributes)
    assert data is not None
    assert axes is not None
    return known(np.expand_dims(data.array, tuple(axes)), data.dtype)


def _reshape(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    data, shape = inputs
    sizes = [int(v) for v in shape.numpy()]
    if not attributes.get("allowzero", 0):
        sizes = [data.array.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return known(data.array.reshape(sizes), data.dtype)


def _transpose(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    return known(np.transpose(inputs[0].array, attributes.get("perm")), inputs[0].dtype)


def _split(inputs: Sequence[Known | None], attributes: Attributes) -> tuple[Known, ...] | None:
    data, axis = inputs[0], attributes.get("axis", 0)
    assert data is not None
    if len(inputs) < 2 or inputs[1] is None:
        return None
    cuts = np.cumsum(inputs[1].numpy())[:-1]
    parts = [known(p, data.dtype) for p in np.split(data.array, cuts, axis)]
    return tuple(p for p in parts if p is not None)


# ---------------------------------------------------------------- making and reducing


def _range(inputs: Sequence[Known], _: Attributes) -> Known | None:
    if not all(v.is_constant for v in inputs):
        return None
    start, limit, step = (v.numpy().item() for v in inputs)
    return known(np.arange(start, limit, step), inputs[0].dtype)


def _constant_of_shape(inputs: Sequence[Known], attributes: Attributes) -> Known | None:
    if not inputs[0].is_constant:
        return None
    fill = attributes.get("value")
    value = np.zeros(1, np.float32)
    if fill is not None:
        from onnx import numpy_helper

        value = numpy_helper.to_array(fill)
    shape = [int(v) for v in inputs[0].ints()]
    if math.prod(shape) > MAX_ELEMENTS:
        return None
    return known(np.full(shape, value.item()), str(value.dtype))


def _expand(inputs: Sequence[Known], _: Attributes) -> Known | None:
    data, shape = inputs
    sizes = [int(v) for v in shape.numpy()]
    if math.prod(sizes) > MAX_ELEMENTS:
        return None
    both = np.broadcast_shapes(data.array.shape, tuple(sizes))
    return known(np.broadcast_to(data.array, both), data.dtype)


def _product(inputs: Sequence[Known | None], attributes: Attributes) -> Known | None:
    data, axes = inputs[0], _axes(inputs, attributes)
    assert data is not None
    if data.array.ndim != 1 or axes not in (None, [0], [-1]):
        return None
    total: Any = 1
    for value in data.ints():
        total = total * value
    return known([total] if attributes.get("keepdims", 1) else total, data.dtype)


def _identity(inputs: Sequence[Known], _: Attributes) -> Known:
    return inputs[0]


_RULES: dict[str, Callable[..., Known | tuple[Known, ...] | None]] = {
    "Add": _elementwise(lambda a, b: a + b),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": _compare(lambda a, b: a == b, tirx.EQ),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _compare(lambda a, b: a > b, tirx.GT),
    "GreaterOrEqual": _compare(lambda a, b: a >= b, tirx.GE),
    "Identity": _identity,
    "Less": _compare(lambda a, b: a < b, tirx.LT),
    "LessOrEqual": _compare(lambda a, b: a <= b, tirx.LE),
    "Max": lambda inputs, _: _extreme(inputs, larger=True),
    "Min": lambda inputs, _: _extreme(inputs, larger=False),
    "Mod": _modulo,
    "Mul": _elementwise(lambda a, b: a * b),
    "Neg": _elementwise(lambda a: -a),
    "Not": _number_only(lambda a: not a),
    "Range": _range,
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _number_only(math.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(lambda a, b: a - b),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}

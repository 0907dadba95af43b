"""Operators that compute element by element."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bscompile.sizes.values import Algebra, Attributes, Known, UncertainError, is_symbolic, known

Rule = Callable[..., Known | None]


def _elementwise(function: Callable[..., Any], dtype: str | None = None) -> Rule:
    def rule(inputs: Sequence[Known], _: Attributes, _algebra: Algebra) -> Known | None:
        arrays = [v.array for v in inputs]
        result = np.frompyfunc(function, len(arrays), 1)(*arrays)
        return known(np.asarray(result, dtype=object), dtype or inputs[-1].dtype)

    return rule


def _compare(sign: str, plain: Callable[[Any, Any], Any]) -> Rule:
    def rule(inputs: Sequence[Known], attributes: Attributes, algebra: Algebra) -> Known | None:
        def function(a: Any, b: Any) -> bool:
            if is_symbolic(a) or is_symbolic(b):
                return algebra.certain(sign, a, b)
            return bool(plain(a, b))

        return _elementwise(function, "bool")(inputs, attributes, algebra)

    return rule


def _divide(inputs: Sequence[Known], attributes: Attributes, algebra: Algebra) -> Known | None:
    def integers(a: Any, b: Any) -> Any:
        if is_symbolic(a) or is_symbolic(b):
            return algebra.quotient(a, b)
        return int(math.copysign(abs(a) // abs(b), a * b)) if a * b else a // b

    floating = np.issubdtype(np.dtype(inputs[0].dtype), np.floating)
    rule = _elementwise((lambda a, b: a / b) if floating else integers)
    return rule(inputs, attributes, algebra)


def _modulo(inputs: Sequence[Known], attributes: Attributes, algebra: Algebra) -> Known | None:
    if attributes.get("fmod", 0) or not np.issubdtype(np.dtype(inputs[0].dtype), np.integer):
        return None
    return _elementwise(lambda a, b: a % b)(inputs, attributes, algebra)


def _extreme(sign: str) -> Rule:
    def rule(inputs: Sequence[Known], _: Attributes, algebra: Algebra) -> Known | None:
        def pick(a: Any, b: Any) -> Any:
            if is_symbolic(a) or is_symbolic(b):
                return a if algebra.certain(sign, a, b) else b
            return max(a, b) if sign == ">=" else min(a, b)

        result = inputs[0].array
        for other in inputs[1:]:
            result = np.frompyfunc(pick, 2, 1)(result, other.array)
        return known(np.asarray(result, dtype=object), inputs[0].dtype)

    return rule


def _number_only(function: Callable[[Any], Any]) -> Rule:
    def checked(value: Any) -> Any:
        if is_symbolic(value):
            raise UncertainError
        return function(value)

    return _elementwise(checked)


def _cast(inputs: Sequence[Known], attributes: Attributes, _algebra: Algebra) -> Known | None:
    import onnx

    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
    source = inputs[0]
    if source.is_constant:
        return known(source.numpy().astype(dtype), dtype)
    # A symbolic size stays one only while it is an integer.
    return known(source.array, dtype) if dtype in ("int64", "int32") else None


def _where(inputs: Sequence[Known], _: Attributes, _algebra: Algebra) -> Known | None:
    chosen = np.frompyfunc(lambda c, a, b: a if c else b, 3, 1)(*(v.array for v in inputs))
    return known(np.asarray(chosen, dtype=object), inputs[1].dtype)


ARITHMETIC: dict[str, Rule] = {
    "Add": _elementwise(operator.add),
    "Cast": _cast,
    "Div": _divide,
    "Equal": _compare("==", operator.eq),
    "Greater": _compare(">", operator.gt),
    "GreaterOrEqual": _compare(">=", operator.ge),
    "Less": _compare("<", operator.lt),
    "LessOrEqual": _compare("<=", operator.le),
    "Max": _extreme(">="),
    "Min": _extreme("<="),
    "Mod": _modulo,
    "Mul": _elementwise(operator.mul),
    "Neg": _elementwise(operator.neg),
    "Not": _number_only(operator.not_),
    "Sqrt": _number_only(math.sqrt),
    "Sub": _elementwise(operator.sub),
    "Where": _where,
}

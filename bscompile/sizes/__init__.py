"""Small tensors whose elements are known while compiling: constants and symbolic sizes.

Exporters compute shapes in the graph: Shape, Gather, Concat, Mul, Range, Where and so on. Run
at inference time they would hide every size from the compiler. Here they are evaluated on
arrays of Python numbers and symbolic expressions, so that ``Shape(x)[0] * 12`` stays the
expression ``batch * 12``. Whose expressions those are, an ``Algebra`` says: sympy's name the
dimensions of a model (symbols.py), TVM's become the sizes of a kernel. An operator or a question
(«is batch equal to -1?») without a certain answer gives None, and the operator is then taken
like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bscompile.sizes.arithmetic import ARITHMETIC
from bscompile.sizes.moves import MOVES
from bscompile.sizes.values import (
    Algebra,
    Attributes,
    Known,
    UncertainError,
    is_symbolic,
    known,
)

__all__ = ["Algebra", "Known", "UncertainError", "evaluate", "is_symbolic", "known", "simplified"]


def evaluate(
    op_type: str, inputs: Sequence[Known | None], attributes: Attributes, algebra: Algebra
) -> tuple[Known, ...] | None:
    """The outputs of an ONNX operator, or None when they are not certain.

    Args:
        op_type: An operator of the standard domain.
        inputs: All known; None stands for an optional input that is absent.
        attributes: Plain values by name; tensors as messages.
        algebra: Of the inputs' symbolic elements.
    """
    if not inputs or (op_type not in ARITHMETIC and op_type not in MOVES):
        return None
    result: Known | tuple[Known, ...] | None
    try:
        if op_type in MOVES:
            result = MOVES[op_type](inputs, attributes)
        else:
            result = ARITHMETIC[op_type](inputs, attributes, algebra)
    except (UncertainError, ZeroDivisionError, ValueError, TypeError, IndexError):
        return None  # whoever takes the operator like any other says what is wrong
    if result is None:
        return None
    results = result if isinstance(result, tuple) else (result,)
    return tuple(simplified(value, algebra) for value in results)


def simplified(value: Known, algebra: Algebra) -> Known:
    """The same tensor, each symbolic element in its simplest form."""
    result = np.empty(value.array.shape, dtype=object)
    for index in np.ndindex(value.array.shape):
        element = value.array[index]
        result[index] = algebra.simplify(element) if is_symbolic(element) else element
    return Known(result, value.dtype)

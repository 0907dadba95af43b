"""A small tensor whose elements are known, and what its symbolic elements must be able to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

#: Larger tensors are data, not shapes.
MAX_ELEMENTS = 512

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]


class UncertainError(Exception):
    """The answer depends on a symbolic size."""


class Algebra(Protocol):
    """What can be done with symbolic sizes, all of which are at least one."""

    def simplify(self, value: Any) -> Any:
        """The expression in its simplest form; an int where it is one."""

    def quotient(self, a: Any, b: Any) -> Any:
        """A / b, rounded towards zero."""

    def certain(self, sign: str, a: Any, b: Any) -> bool:
        """The answer to ``a sign b``, the same for all sizes; sign is ==, <, <=, > or >=.

        Raises:
            UncertainError: it depends on the sizes.
        """


def is_symbolic(value: Any) -> bool:
    """Whether an element is an expression, not a number."""
    return not isinstance(value, (int, float, np.generic))


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor known while compiling.

    Attributes:
        array: object [...]: each an int, float or bool, or an int64 expression.
        dtype: numpy's name of the element type.
    """

    array: Array
    dtype: str

    @property
    def is_constant(self) -> bool:
        """Whether no element is symbolic."""
        return not any(is_symbolic(v) for v in self.array.flat)

    def numpy(self) -> Array:
        """The plain array; only for constants."""
        return self.array.astype(self.dtype)

    def ints(self) -> list[Any]:
        """The elements in order, for an operator that takes a list of sizes."""
        return list(self.array.flat)


def known(values: Any, dtype: str) -> Known | None:
    """Wrap an array or nested values; None when there are too many."""
    array: Array = np.asarray(values, dtype=object)
    if array.size > MAX_ELEMENTS:
        return None
    result = np.empty(array.shape, dtype=object)
    for index in np.ndindex(array.shape):
        value: Any = array[index]
        result[index] = value.item() if isinstance(value, np.generic) else value
    return Known(result, dtype)

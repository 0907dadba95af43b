"""Symbolic sizes as sympy writes them: what the dimensions of a model are named by."""

from __future__ import annotations

from typing import Any

import sympy

from bscompile.sizes.values import UncertainError


class SympyAlgebra:
    """Expressions of whole numbers; see values.Algebra."""

    def simplify(self, value: Any) -> Any:
        """Expanded, so that equal sums of products look the same; an int where it is one."""
        value = sympy.expand(value)
        return int(value) if value.is_Integer else value

    def quotient(self, a: Any, b: Any) -> Any:
        """A quotient without a rest; any other is not known."""
        result = sympy.cancel(sympy.sympify(a) / b)
        if not result.is_polynomial() or not all(c.is_Integer for c in _coefficients(result)):
            raise UncertainError
        return result

    def smaller(self, a: Any, b: Any) -> Any:
        """The smaller of two sizes that cannot be told apart."""
        return sympy.Min(a, b)

    def is_at_most(self, a: Any, b: Any) -> bool:
        """Whether ``a`` is ``smaller(b, ...)``: equal to b, or too small to be."""
        return isinstance(a, sympy.Min) and b in a.args

    def certain(self, sign: str, a: Any, b: Any) -> bool:
        """The answer where sympy finds the sign of the difference."""
        distance = sympy.expand(sympy.sympify(a) - b)
        # sympy finds the sign of n + 1 with n >= 0, not that of n - 1 with n > 0.
        shifted = {
            size: sympy.Symbol(f"{size}-1", integer=True, nonnegative=True) + 1
            for size in distance.free_symbols
            if size.is_positive
        }
        distance = sympy.expand(distance.subs(shifted, simultaneous=True))
        answers = {
            "==": distance.is_zero,
            "<": distance.is_negative,
            "<=": distance.is_nonpositive,
            ">": distance.is_positive,
            ">=": distance.is_nonnegative,
        }
        answer = answers[sign]
        if answer is None:
            raise UncertainError
        return bool(answer)


def symbol(name: str, least: int = 1) -> Any:
    """A size that may be any whole number from ``least`` on, which is 0 or 1."""
    if least:
        return sympy.Symbol(name, integer=True, positive=True)
    return sympy.Symbol(name, integer=True, nonnegative=True)


def _coefficients(expression: Any) -> list[Any]:
    return [term.as_coeff_Mul()[0] for term in sympy.Add.make_args(sympy.expand(expression))]

"""Symbolic sizes as TVM writes them: what a kernel is compiled for."""

from __future__ import annotations

import re
from typing import Any

import tvm
from tvm import sym, tirx

from bscompile.sizes import UncertainError

_COMPARISONS = {"==": tirx.EQ, "<": tirx.LT, "<=": tirx.LE, ">": tirx.GT, ">=": tirx.GE}


class TirAlgebra:
    """Int64 expressions; see sizes.Algebra."""

    def simplify(self, value: Any) -> Any:
        """The expression in its simplest form; an int where it is one."""
        value = sym.Analyzer().simplify(value)
        return int(value.value) if isinstance(value, tirx.IntImm) else value

    def quotient(self, a: Any, b: Any) -> Any:
        """Rounded towards zero."""
        return tirx.truncdiv(_expression(a), _expression(b))

    def certain(self, sign: str, a: Any, b: Any) -> bool:
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
        answer = analyzer.simplify(_COMPARISONS[sign](a, b))
        if isinstance(answer, tirx.IntImm):
            return bool(answer.value)
        raise UncertainError


TIR = TirAlgebra()


def plain(size: Any) -> str:
    """A size as people write it: ``batch * 12``."""
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(size))


def _expression(value: Any) -> Any:
    return value if isinstance(value, tvm.ir.Expr) else tirx.const(int(value), "int64")

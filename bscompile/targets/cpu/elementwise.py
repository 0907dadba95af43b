"""What follows a value element by element, found in the graph and emitted as vector code.

A region is a tree of operators over one value and numbers, such as x · clip(x + 3, 0, 6) / 6 for
HardSwish. Whoever computes the value runs it on the vectors that it holds in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cpu.graph import Graph, is_float32, scalar
from bscompile.targets.kernels.code import vector_math
from bscompile.targets.kernels.code.emit import Expr, constant

#: (value, lanes) -> what the region makes of it.
Finish = Callable[[Expr, int], Expr]

_LONGEST = 12  # operators of a region

_FUNCTIONS: dict[str, Callable[..., Expr]] = {
    "relax.erf": vector_math.erf,
    "relax.exp": vector_math.exp,
    "relax.nn.gelu": vector_math.gelu,
    "relax.nn.gelu_tanh": vector_math.gelu_tanh,
    "relax.nn.relu": vector_math.relu,
    "relax.nn.silu": vector_math.silu,
    "relax.sigmoid": vector_math.sigmoid,
    "relax.tanh": vector_math.tanh,
}
_PAIRS: dict[str, Callable[[Expr, Expr], Expr]] = {
    "relax.add": lambda a, b: a + b,
    "relax.subtract": lambda a, b: a - b,
    "relax.multiply": lambda a, b: a * b,
    "relax.divide": lambda a, b: a / b,
    # The first operand goes last, so that its NaN stays NaN.
    "relax.maximum": lambda a, b: T.max(b, a),
    "relax.minimum": lambda a, b: T.min(b, a),
}


#: What there is code for.
OPERATORS = (*_FUNCTIONS, *_PAIRS, "relax.clip", "relax.nn.leakyrelu")


def region(graph: Graph, result: Any, is_base: Callable[[Any], bool]) -> tuple[Any, Finish] | None:
    """(base, code): ``result`` computed from the one value for which ``is_base`` holds.

    None where there is no such region: an operator that has no code here, a second tensor, or a
    value between that somebody else reads.
    """
    calls: list[Any] = []
    bases: list[Any] = []

    def collect(var: Any) -> bool:
        if is_base(var):
            if var not in bases:
                bases.append(var)
            return len(bases) == 1
        if var in calls:
            return True
        call = graph.call(var, *OPERATORS)
        if call is None or not is_float32(var) or len(calls) >= _LONGEST:
            return False
        tensors = [arg for arg in call.args if scalar(arg) is None and not _is_number(arg)]
        if not tensors or not all(collect(arg) for arg in tensors):
            return False
        calls.append(var)
        return True

    if not collect(result) or not bases:
        return None
    inside = set(calls)
    between = [*bases, *calls][:-1]
    if any(not _only_read_by(graph, var, inside) for var in between):
        return None
    return bases[0], lambda value, lanes: _emit(graph, calls, bases[0], value, lanes)


def _only_read_by(graph: Graph, var: Any, inside: set[Any]) -> bool:
    readers = graph.readers.get(var, [])
    return graph.uses[var] == len(readers) and all(reader in inside for reader in readers)


def _is_number(expr: Any) -> bool:
    return hasattr(expr, "value") and isinstance(expr.value, int | float)


def emit_call(call: Any, values: Sequence[Expr], lanes: int) -> Expr:
    """The code of one of ``OPERATORS``.

    Args:
        call: The call.
        values: Its tensors, a vector of each.
        lanes: Their elements.
    """
    name, first = call.op.name, values[0]
    if name in _PAIRS:
        return _PAIRS[name](first, values[1])
    if name == "relax.clip":
        low, high = (float(limit.value) for limit in call.args[1:])
        return vector_math.clip(first, lanes, low, high)
    if name == "relax.nn.leakyrelu":
        return vector_math.leaky_relu(first, lanes, float(call.attrs.alpha))
    return _FUNCTIONS[name](first, lanes)


def _emit(graph: Graph, calls: list[Any], base: Any, value: Expr, lanes: int) -> Expr:
    values: dict[Any, Expr] = {base: value}

    def of(arg: Any) -> Expr:
        number = scalar(arg)
        return constant(number, lanes) if number is not None else values[arg]

    for var in calls:
        call = graph.value[var]
        tensors = [of(arg) for arg in call.args if not _is_number(arg)]
        values[var] = T.bind(emit_call(call, tensors, lanes))
    return values[calls[-1]] if calls else value

"""Elementwise expressions as polynomials, so that one comparison covers every way to write them.

GELU is x/2 + x/2 · erf(x/√2). Exporters write it as 0.5 * (x * (1 + erf(x / √2))), with the
factors in any order and association, a division as a product, a cube as Pow or Mul. Expanded
into a polynomial over x and opaque leaves (the results of Erf, Tanh, Sigmoid and
the like) all are equal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from bscompile.passes.graph import is_op, scalar

#: The product of leaves, each as often as its power: sorted ids of values.
Monomial = tuple[int, ...]
Polynomial = Mapping[Monomial, float]

ELEMENTWISE = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Neg",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Clip",
    "HardSigmoid",
)
_LEAVES = ("Erf", "Tanh", "Sigmoid", "Clip", "HardSigmoid")
_MOST_TERMS = 16
_TOLERANCE = 1e-4  # constants are written with four digits at worst


def expand(value: ir.Value, base: ir.Value) -> Polynomial | None:
    """The polynomial that ``value`` is over ``base`` and leaves; None if it is none, or large."""
    if value is base:
        return {(id(base),): 1.0}
    number = scalar(value)
    if number is not None:
        return {(): number}
    node = value.producer()
    if is_op(node, *_LEAVES):
        return {(id(value),): 1.0}
    if node is None or not is_op(node, *ELEMENTWISE):
        return None
    terms = [expand(v, base) if v is not None else None for v in node.inputs]
    if any(t is None or len(t) > _MOST_TERMS for t in terms):
        return None
    return _combine(node.op_type, [t for t in terms if t is not None])


def _combine(op_type: str, terms: list[Polynomial]) -> Polynomial | None:
    if op_type == "Neg":
        return _scaled(terms[0], -1.0)
    a, b = terms
    if op_type in ("Add", "Sub"):
        return _sum(a, _scaled(b, 1.0 if op_type == "Add" else -1.0))
    if op_type == "Mul":
        return _product(a, b)
    if set(b) != {()}:  # a divisor or exponent must be a number
        return None
    number = b[()]
    if op_type == "Div":
        return _scaled(a, 1.0 / number) if number else None
    if number not in (2.0, 3.0):
        return None
    power = _product(a, a)
    return power if number == 2.0 else _product(power, a)


def _scaled(a: Polynomial, factor: float) -> Polynomial:
    return {monomial: factor * c for monomial, c in a.items()}


def _sum(a: Polynomial, b: Polynomial) -> Polynomial:
    return {m: a.get(m, 0.0) + b.get(m, 0.0) for m in (*a, *(m for m in b if m not in a))}


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    total: Counter[Monomial] = Counter()
    for left, c in a.items():
        for right, d in b.items():
            total[tuple(sorted(left + right))] += c * d  # type: ignore[assignment]
    return total


def same(a: Polynomial | None, b: Polynomial) -> bool:
    """Equal terms, coefficients equal to four digits."""
    if a is None:
        return False
    return all(
        math.isclose(a.get(m, 0.0), b.get(m, 0.0), rel_tol=_TOLERANCE, abs_tol=1e-9)
        for m in {*a, *b}
    )


def activation_of(result: ir.Value, base: ir.Value) -> str | None:
    """The name of the activation that maps ``base`` to ``result``, if it is one of ours."""
    polynomial = expand(result, base)
    if polynomial is None:
        return None
    x = id(base)
    leaves = _leaves(result, base)
    if len(leaves) != 1:
        return None
    leaf = leaves[0]
    function = leaf.producer()
    assert function is not None
    inner = function.inputs[0]
    argument = None if inner is None else expand(inner, base)
    with_leaf = tuple(sorted((x, id(leaf))))
    if function.op_type == "Sigmoid":
        fits = same(polynomial, {with_leaf: 1.0}) and same(argument, {(x,): 1.0})
        return "silu" if fits else None
    if function.op_type in ("Clip", "HardSigmoid"):
        return (
            "hard_swish" if _is_hard_swish(function, argument, polynomial, x, with_leaf) else None
        )
    if not same(polynomial, {(x,): 0.5, with_leaf: 0.5}):
        return None
    if function.op_type == "Erf":
        return "gelu" if same(argument, {(x,): math.sqrt(0.5)}) else None
    slope = math.sqrt(2 / math.pi)
    fits = same(argument, {(x,): slope, (x, x, x): slope * 0.044715})
    return "gelu_tanh" if fits else None


def _is_hard_swish(
    leaf: ir.Node, argument: Polynomial | None, whole: Polynomial, x: int, with_leaf: Monomial
) -> bool:
    """Whether x times a leaf is x (x + 3 cut to [0, 6]) / 6 or x hard_sigmoid(x)."""
    if leaf.op_type == "Clip":
        ends = [scalar(value) for value in leaf.inputs[1:3]]
        inner = {(x,): 1.0, (): 3.0}
        return ends == [0.0, 6.0] and same(whole, {with_leaf: 1 / 6}) and same(argument, inner)
    slope = leaf.attributes.get_float("alpha", 0.2)
    middle = leaf.attributes.get_float("beta", 0.5)
    fits = math.isclose(slope, 1 / 6, rel_tol=_TOLERANCE) and middle == 0.5
    return fits and same(whole, {with_leaf: 1.0}) and same(argument, {(x,): 1.0})


def _leaves(value: ir.Value, base: ir.Value) -> list[ir.Value]:
    """The leaves that an expression reaches, each once."""
    found: dict[int, ir.Value] = {}
    stack = [value]
    while stack:
        current = stack.pop()
        node = current.producer()
        if current is base or node is None:
            continue
        if is_op(node, *_LEAVES):
            found[id(current)] = current
        else:
            stack += [v for v in node.inputs if v is not None]
    return list(found.values())

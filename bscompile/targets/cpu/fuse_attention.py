"""softmax(scale · Q Kᵀ + mask) V becomes one call of the generated function.

Where the graph replaces NaN among the weights by 0, as torch does for queries that the mask
leaves no key, the function does as well.
Transposes of Q, K, V and of the result are read as storage orders and fall away. Anything that
is not surely this pattern on float32 [batch, head, ...] or [head, ...] is left alone: scores
with other readers, masks whose sizes are not surely those of the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bscompile.targets.cpu.graph import (
    Graph,
    Operand,
    Replacement,
    is_float32,
    operand,
    replacing_pass,
    scalar,
)


def FuseAttention(generate: Callable[..., Any]) -> Any:  # noqa: N802  # a pass, named like TVM's
    """The pass that replaces every attention of a module.

    Args:
        generate: (q, k, v, mask or None, out, scale=, drop_nan=) -> the function, with tensors as
            code/tensors.py describes them; None leaves the operators as they are.
    """

    def find(graph: Graph, var: Any) -> Replacement | None:
        source, perm = graph.through_transposes(var) if is_float32(var) else (var, [])
        if not perm:
            return None
        if source is not var:
            if graph.uses[source] != 1 or perm[-1] != len(perm) - 1:
                return None
        elif _turned_later(graph, var):
            return None  # the transpose that follows is replaced instead
        found = _find(graph, source)
        if found is None:
            return None
        letters = "".join(found.letters[p] for p in perm)
        out = operand("out", var, letters)
        operands = [o for o in (found.q, found.k, found.v, found.mask) if o is not None]
        function = generate(
            found.q.tensor,
            found.k.tensor,
            found.v.tensor,
            None if found.mask is None else found.mask.tensor,
            out.tensor,
            scale=found.scale,
            drop_nan=found.drop_nan,
        )
        if function is None:
            return None
        return Replacement("attention", function, tuple(o.expr for o in operands))

    return replacing_pass("bscompile.FuseAttention", find)


def _turned_later(graph: Graph, var: Any) -> bool:
    reader = graph.only_reader(var)
    call = None if reader is None else graph.call(reader, "relax.permute_dims")
    if call is None:
        return False
    _, perm = graph.through_transposes(reader)
    return bool(perm[-1] == len(perm) - 1)


@dataclass(frozen=True, eq=False)
class _Attention:
    """What was found; ``letters`` are the axes of its result."""

    q: Operand
    k: Operand
    v: Operand
    mask: Operand | None
    scale: float
    drop_nan: bool
    letters: str


def _find(graph: Graph, var: Any) -> _Attention | None:
    outer = graph.call(var, "relax.matmul")
    if outer is None or var.ty.ndim not in (3, 4):
        return None
    weights, values = outer.args
    guarded = _guarded(graph, weights)
    softmax = graph.call(weights if guarded is None else guarded, "relax.nn.softmax")
    rank = var.ty.ndim
    if softmax is None or graph.uses[weights] != 1:
        return None
    if int(softmax.attrs.axis) not in (-1, rank - 1):
        return None
    scores, addend, scale = _scores(graph, softmax.args[0])
    if scores is None:
        return None
    heads = "bh"[4 - rank :]
    left, right = scores.args
    if not left.ty.ndim == right.ty.ndim == values.ty.ndim == rank:
        return None  # one of them is repeated for all batches
    left, q_perm, q_scale = _source(graph, left)
    right, k_perm, k_scale = _source(graph, right)
    q = operand("q", left, heads + "sd", q_perm)
    k = operand("k", right, heads + "dt", k_perm)
    source, perm = graph.through_transposes(values)
    if perm[-1] != rank - 1:
        source, perm = values, list(range(rank))
    v = operand("v", source, heads + "te", perm)
    mask = None
    if addend is not None:
        if not 0 < addend.ty.ndim <= rank:
            return None  # one number for all scores, or a mask that makes y larger than q
        mask = operand("mask", addend, (heads + "st")[-addend.ty.ndim :])
    factor = scale * q_scale * k_scale
    found = _Attention(q, k, v, mask, factor, guarded is not None, heads + "se")
    return found if _fits(found) else None


def _guarded(graph: Graph, weights: Any) -> Any:
    """P where ``weights`` = where(isnan(p), 0, p) and nothing else reads p, else None."""
    where = graph.call(weights, "relax.where")
    if where is None:
        return None
    condition, zero, p = where.args
    test = graph.call(condition, "relax.isnan")
    if test is None or not test.args[0].same_as(p) or scalar(zero) != 0:
        return None
    return p if graph.uses[condition] == 1 and graph.uses[p] == 2 else None


def _scores(graph: Graph, expr: Any) -> tuple[Any, Any, float]:
    """(matmul call or None, mask or None, scale) of softmax's argument."""
    mask, scale = None, 1.0
    add = graph.call(expr, "relax.add")
    if add is not None and graph.uses[expr] == 1:
        for inner, other in (tuple(add.args), tuple(add.args)[::-1]):
            call, nothing, factor = _scores(graph, inner)
            if call is not None and nothing is None and is_float32(other):
                return call, other, factor
        return None, None, 1.0
    if graph.uses[expr] != 1:
        return None, None, 1.0
    expr, factor = _unscaled(graph, expr)
    scale *= factor
    return graph.call(expr, "relax.matmul"), mask, scale


def _unscaled(graph: Graph, expr: Any) -> tuple[Any, float]:
    """(x, c) where ``expr`` = c x."""
    factor = 1.0
    while (call := graph.call(expr, "relax.multiply", "relax.divide")) is not None:
        left, right = call.args
        if (number := scalar(right)) is not None and number != 0:
            factor = factor * number if call.op.name == "relax.multiply" else factor / number
            expr = left
        elif (number := scalar(left)) is not None and call.op.name == "relax.multiply":
            factor, expr = factor * number, right
        else:
            break
    return expr, factor


def _source(graph: Graph, expr: Any) -> tuple[Any, list[int], float]:
    """(x, perm, c) where ``expr`` = c · permute_dims(x, perm)."""
    expr, factor = _unscaled(graph, expr)
    source, perm = graph.through_transposes(expr)
    inner, more = _unscaled(graph, source)
    return inner, perm, factor * more


def _fits(found: _Attention) -> bool:
    q, k, v = found.q.tensor, found.k.tensor, found.v.tensor
    operands = [o for o in (found.q, found.k, found.v, found.mask) if o is not None]
    if not all(is_float32(o.expr) for o in operands):
        return False
    same = (
        all(q.size(a) == k.size(a) == v.size(a) for a in "bh")
        and q.size("d") == k.size("d")
        and k.size("t") == v.size("t")
        and isinstance(q.size("d"), int)
        and isinstance(v.size("e"), int)
    )
    if not same or found.mask is None:
        return same
    wanted = {"b": q.size("b"), "h": q.size("h"), "s": q.size("s"), "t": k.size("t")}
    mask = found.mask.tensor
    return all(size in (1, wanted[axis]) for axis, size in zip(mask.axes, mask.sizes, strict=True))

"""The sum over q of a factorized layer: Σ_q Aᵢ[p, q] v[q, :] for one block row p, in registers.

It is bound by loads, one vector for each multiply-add. So a coefficient is not spread over a
register by a load of its own. It comes with its q, or with another one, in a word of 64 bits
through a general register, and the vectors have the ports for loads to themselves: 4.5 cycles of
a Zen 4 for four vectors, which their loads alone take, instead of 5.1. Where terms share what they
read, loads are few, and spreading in registers would only take ports from the multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.vectors import pieces

#: (position, lanes) -> that part of a sum, never over the end of a vector.
Held = Callable[[int, int], Expr]

_BUFFER = 128  # elements of the largest buffer that stays in registers
_CHAINS = 4  # independent sums that hide the latency of the multiply-add


class Sum:
    """One sum in registers.

    Args:
        width: Its elements.
        lanes: Elements of a vector.
    """

    def __init__(self, width: int, lanes: int) -> None:
        held = emit.accumulators(-(-width // _BUFFER), min(width, _BUFFER))
        self.vectors = [(at, size) for at, size in pieces(width, lanes)]
        self._held = held
        for at, size in self.vectors:
            self.store(emit.constant(0.0, size), at, size)

    def store(self, value: Expr, at: int, size: int) -> None:
        """Replace elements [at, at + size)."""
        emit.store(self._held[at // _BUFFER], value, at % _BUFFER, lanes=size)

    def __call__(self, at: int, size: int) -> Expr:
        """Elements [at, at + size), a part of one vector."""
        return emit.load(self._held[at // _BUFFER], at % _BUFFER, lanes=size)


def weighted_sums(
    args: Arguments,
    width: int,
    lanes: int,
    p: Expr,
    prepared: Buffer,
    terms: Sequence[tuple[int, int, int]],
) -> list[Sum]:
    """Sum s: Σ_q Σ coefficient[q, i] prepared[q, offset : offset + width] over its terms.

    Args:
        args: The kernel's parameters; the first two operands are steps and indptr.
        width: Elements of each sum.
        lanes: Elements of one vector.
        p: The block row.
        prepared: What is summed.
        terms: (i, offset, s), as many of each s, equal offsets side by side.
    """
    steps, indptr = args.operands[:2]
    count = 1 + max(s for *_, s in terms)
    chains = max(1, _CHAINS // (count * len(pieces(width, lanes))))
    spread = min(chains, len(terms) // count)  # chains that the terms of one q fill
    together = chains // spread  # q's side by side for the others
    every = [[Sum(width, lanes) for _ in range(count)] for _ in range(spread * together)]

    # Where a coefficient multiplies one vector, or several terms share one, loads are few enough.
    through_words = count == 1 and (width > lanes or len(terms) > 1)

    def accumulate(place: int, index: Expr) -> None:
        j = T.bind(T.cast(index, "int64"))
        q, coefficients = _read(steps, j, [i for i, *_ in terms], through_words)
        values: dict[tuple[int, int], Expr] = {}
        taken = [0] * count
        for a, (_, offset, s) in zip(coefficients, terms, strict=True):
            into = every[place * spread + taken[s] % spread][s]
            taken[s] += 1
            for at, size in into.vectors:
                key = (offset, at)
                if key not in values:
                    values[key] = T.bind(emit.load(prepared, q, offset + at, lanes=size))
                into.store(into(at, size) + emit.splat(a, size) * values[key], at, size)

    first, last = indptr[p], indptr[p + 1]
    if together == 2:  # the odd one is no loop, which LLVM would unroll
        pairs = T.bind(T.shift_right(last - first, T.int32(1)))
        with T.serial(0, pairs) as step:
            for place in range(2):
                accumulate(place, first + step * 2 + place)
        with T.If(T.bitwise_and(last - first, T.int32(1)) != 0), T.Then():
            accumulate(0, last - 1)
    else:
        emit.loop_by(first, last, together, lambda index, place: accumulate(place, index))
    for sums in every[1:]:
        for into, other in zip(every[0], sums, strict=True):
            for at, size in into.vectors:
                into.store(into(at, size) + other(at, size), at, size)
    return every[0]


def _read(
    steps: Buffer, j: Expr, terms: Sequence[int], through_words: bool
) -> tuple[Expr, list[Expr]]:
    """The q and some coefficients of step j; see ``pack_factors`` for where they are."""
    places = [i + 1 if i else 0 for i in terms]
    if not through_words:
        q = T.bind(T.cast(steps[j, 1], "int64"))
        return q, [T.bind(T.reinterpret("float32", steps[j, place])) for place in places]
    words: dict[int, Expr] = {}

    def half(place: int) -> Expr:
        first = place - place % 2
        if first not in words:
            words[first] = T.bind(T.reinterpret("int64", emit.load(steps, j, first, lanes=2)))
        return T.shift_right(words[first], T.int64(32)) if place % 2 else words[first]

    q = T.bind(half(1))
    return q, [T.bind(T.reinterpret("float32", T.cast(half(at), "int32"))) for at in places]

"""softmax(scale · Q Kᵀ + mask) V in one function, the scores never leaving the cache.

Axes: b batch, h head, s query, t key, d inner, e outer; each operand in any storage order.
A worker takes consecutive (batch, head, tile of queries) items. Per (batch, head) it copies K
into columns [d, t], so that scores are vectors of keys; per tile it keeps one row of scores for
each query.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cpu.code.tensors import (
    Argument,
    Size,
    Tensor,
    across,
    function,
    rounded_up,
)
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Buffer, Expr
from bscompile.targets.kernels.code.transpose import transposed
from bscompile.targets.kernels.code.vector_math import exp_of_negative
from bscompile.targets.kernels.vectors import pieces

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

VECTORS = 2  # vectors of keys, or of outputs, per register tile


def for_machine(hardware: HardwareSpec, nest: type[Nest] | None = None) -> Callable[..., Any]:
    """``generate`` with what it has to know of the machine, and how to multiply."""
    return partial(generate, lanes=hardware.vector_bytes // 4, tasks=hardware.cores, nest=nest)


def generate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    *,
    scale: float,
    drop_nan: bool = False,
    lanes: int,
    tasks: int,
    nest: type[Nest] | None = None,
) -> Any:
    """The function (q, k, v, [mask,] out).

    Args:
        q: Axes b h s d in any order.
        k: Axes b h t d in any order.
        v: Axes b h t e, e last.
        mask: Axes b h s t, t last; an axis of size one is shared. None adds nothing.
        out: Axes b h s e, e last.
        scale: Factor of Q Kᵀ.
        drop_nan: Weights that are NaN count as 0.
        lanes: Elements of one vector.
        tasks: Parallel tasks.
        nest: Emits the loops; None multiplies in float32.
    """
    kind = nest or Nest
    tensors = [t for t in (q, k, v, mask, out) if t is not None]
    masked = mask is not None

    def body(arguments: list[Argument], size: Callable[[Size], Expr]) -> None:
        emit.for_row_tiles(
            size(q.size("s")),
            (8, 2) if lanes >= 16 else (6, 2),
            lambda rows: kind(arguments, size, masked, scale, drop_nan, lanes, rows).emit(tasks),
        )

    return function("attention", tensors, body)


class Nest:
    """The code for one number of rows per tile."""

    def __init__(
        self,
        arguments: list[Argument],
        size: Callable[[Size], Expr],
        masked: bool,
        scale: float,
        drop_nan: bool,
        lanes: int,
        rows: int,
    ) -> None:
        self.q, self.k, self.v, *rest = arguments
        self.out = rest[-1]
        self.mask = rest[0] if masked else None
        q, k, v = self.q.tensor, self.k.tensor, self.v.tensor
        self.batch, self.heads, self.queries = (size(q.size(a)) for a in "bhs")
        self.keys = size(k.size("t"))
        self.inner, self.outer = int(q.size("d")), int(v.size("e"))
        self.scale, self.drop_nan, self.lanes, self.rows = scale, drop_nan, lanes, rows
        self.padded = rounded_up(self.keys, VECTORS * lanes)

    def emit(self, tasks: int) -> None:
        """Emit everything."""
        tiles = T.int64(emit.tile_count(self.queries, self.rows))
        work = tiles * self.heads * self.batch

        def task(p: Expr) -> None:
            with emit.opaque():
                kept, passing = self._kept(), self._passing()
                first, last = (T.bind(end) for end in emit.share(work, p, tasks))
                with T.serial(first, last) as item:
                    tile = T.bind(T.floormod(item, tiles))
                    head = T.bind(T.floormod(T.floordiv(item, tiles), self.heads))
                    batch = T.bind(T.floordiv(item, tiles * self.heads))
                    with T.If(T.Or(tile == 0, item == first)), T.Then():
                        self._pack(kept, batch, head)
                    row = T.bind(emit.tile_start(self.queries, self.rows, tile))
                    self._scores(kept, passing, batch, head, row)
                    with emit.opaque():
                        totals = emit.accumulators(1, self.rows)[0]
                        self._softmax(passing, totals, batch, head, row)
                        self._outputs(kept, passing, totals, batch, head, row)

        emit.parallel_tasks(tasks, task)

    def _kept(self) -> list[Buffer]:
        """What is made once for each (batch, head): K in columns.

        A first use here also keeps TVM from moving the buffer into the loop, where it would not
        survive from one item to the next.
        """
        columns = T.sblock_alloc_buffer((self.inner, self.padded), "float32")
        self._clear_padding(columns)
        return [columns]

    def _passing(self) -> list[Buffer]:
        """What is made for each tile: first its scores, last its weights."""
        return [T.sblock_alloc_buffer((self.rows, self.padded), "float32")]

    def _weigh(self, passing: list[Buffer], weight: Expr, r: Expr, at: Expr) -> None:
        """Keep a vector of weights, which are not yet divided by their sum."""
        emit.store(passing[-1], weight, r, at, lanes=self.lanes)

    def _pack(self, kept: list[Buffer], batch: Expr, head: Expr) -> None:
        """K -> [d, t]: in squares where d is what lies side by side."""
        (columns,) = kept
        lanes, here = self.lanes, {"b": batch, "h": head}
        by_squares = self.k.tensor.axes[-1] == "d" and self.inner >= lanes
        squares = T.floordiv(T.int64(self.keys), T.int64(lanes)) if by_squares else T.int64(0)
        if by_squares:
            parts = -(-self.inner // lanes)
            with T.serial(0, squares) as group, T.serial(0, T.int64(parts)) as part, emit.opaque():
                t = T.bind(group * lanes)
                d = T.bind(T.min(part * lanes, T.int64(self.inner - lanes)))
                rows = [self.k.load(lanes, **here, t=t + r, d=d) for r in range(lanes)]
                for i, column in enumerate(transposed(rows)):
                    emit.store(columns, column, d + i, t, lanes=lanes)
        rest = emit.loop(squares * lanes, T.int64(self.keys))
        with rest as t, T.serial(0, T.int64(self.inner)) as d:
            T.buffer_store(columns, self.k.load(**here, t=t, d=d), [d, t])

    def _clear_padding(self, columns: Buffer) -> None:
        T.buffer_store(columns, T.float32(0), [0, 0])
        behind = T.serial(T.int64(self.keys), T.int64(self.padded))
        with T.serial(0, T.int64(self.inner)) as d, behind as t:
            T.buffer_store(columns, T.float32(0), [d, t])

    def _scores(
        self, kept: list[Buffer], passing: list[Buffer], batch: Expr, head: Expr, row: Expr
    ) -> None:
        """Scores = scale · Q Kᵀ for one tile of queries."""
        (columns,) = kept
        width = VECTORS * self.lanes
        blocks = T.floordiv(T.int64(self.padded), T.int64(width))
        with T.serial(0, blocks) as block, emit.opaque():
            sums = emit.accumulators(self.rows, width)
            at = [i * self.lanes for i in range(VECTORS)]
            self._clear(sums, at)
            with T.serial(0, T.int64(self.inner)) as d:
                self._multiply(
                    sums,
                    [emit.load(columns, d, block * width + a, lanes=self.lanes) for a in at],
                    lambda r: self.q.load(b=batch, h=head, s=row + r, d=d),
                )
            self._scale(sums, at, passing[0], block * width)

    def _scale(self, sums: list[Buffer], at: list[int], scores: Buffer, first: Expr) -> None:
        factor = emit.constant(self.scale, self.lanes)
        for r, acc in enumerate(sums):
            for a in at:
                value = emit.load(acc, a, lanes=self.lanes) * factor
                emit.store(scores, value, r, first + a, lanes=self.lanes)

    def _softmax(
        self, passing: list[Buffer], totals: Buffer, batch: Expr, head: Expr, row: Expr
    ) -> None:
        """Scores -> weights exp(scores + mask - max), their sums inverted in ``totals``.

        Several rows go side by side: one row alone would wait for its own results.
        """
        scores = passing[0]
        group = next(n for n in (4, 3, 2, 1) if self.rows % n == 0)
        lanes, within = self.lanes, range(group)
        with T.serial(0, T.int64(self.rows // group)) as g, emit.opaque():
            partial = emit.accumulators(group, lanes)
            queries = [T.bind(g * group + r) for r in within]
            where = [{"b": batch, "h": head, "s": row + r} for r in queries]

            def start(value: float) -> None:
                for acc in partial:
                    emit.store(acc, emit.constant(value, lanes), 0, lanes=lanes)

            vectors = T.floordiv(T.int64(self.padded), T.int64(lanes))
            start(-math.inf)

            def raise_tops(i: Expr, masks: list[Expr]) -> None:
                for r, acc, mask in zip(queries, partial, masks or [None] * group, strict=True):
                    score = emit.load(scores, r, i * lanes, lanes=lanes)
                    if mask is not None:
                        score = T.bind(score + mask)
                        emit.store(scores, score, r, i * lanes, lanes=lanes)
                    largest = T.max(emit.load(acc, 0, lanes=lanes), score)
                    emit.store(acc, largest, 0, lanes=lanes)

            whole = T.floordiv(T.int64(self.keys), T.int64(lanes))
            with T.serial(0, whole) as i:
                raise_tops(i, self._masks(where, i * lanes, lanes))
            if self.mask is not None:
                with T.serial(whole * lanes, T.int64(self.keys)) as t:
                    for r, mask in zip(queries, self._masks(where, t, 1), strict=True):
                        T.buffer_store(scores, scores[r, t] + mask, [r, t])
            with T.serial(T.int64(self.keys), T.int64(self.padded)) as t:
                for r in queries:
                    T.buffer_store(scores, T.float32(-math.inf), [r, t])
            with emit.loop(whole, vectors) as i:
                raise_tops(i, [])
            tops = [across(acc, lanes, T.max) for acc in partial]
            start(0.0)
            with T.serial(0, vectors) as i:
                for r, acc, top in zip(queries, partial, tops, strict=True):
                    score = emit.load(scores, r, i * lanes, lanes=lanes)
                    power = exp_of_negative(score - emit.splat(top, lanes), lanes)
                    self._weigh(passing, power, r, i * lanes)
                    total = emit.load(acc, 0, lanes=lanes) + power
                    emit.store(acc, total, 0, lanes=lanes)
            for r, acc in zip(queries, partial, strict=True):
                whole = across(acc, lanes, lambda a, b: a + b)
                T.buffer_store(totals, T.float32(1) / whole, [r])
                if self.drop_nan:
                    with T.If(T.isnan(whole)), T.Then():  # one NaN makes a row of them
                        T.buffer_store(totals, T.float32(1), [r])
                        with T.serial(0, vectors) as i:
                            self._weigh(passing, emit.constant(0.0, lanes), r, i * lanes)

    def _masks(self, where: list[dict[str, Expr]], t: Expr, lanes: int) -> list[Expr]:
        """What the mask adds to ``lanes`` scores of each query; nothing where there is none."""
        if self.mask is None:
            return []
        mask = self.mask
        size = 1 if mask.tensor.size("t") == 1 else lanes
        shared = mask.tensor.size("s") == 1
        different = where[:1] if shared else where
        values = [T.bind(emit.splat(mask.load(size, t=t, **w), lanes // size)) for w in different]
        return values * (len(where) // len(values))

    def _outputs(
        self,
        kept: list[Buffer],
        passing: list[Buffer],
        totals: Buffer,
        batch: Expr,
        head: Expr,
        row: Expr,
    ) -> None:
        """Out = weights V / total."""
        (weights,) = passing
        width = VECTORS * self.lanes
        for start in range(0, self.outer, width):
            cut = pieces(min(width, self.outer - start), self.lanes)
            with emit.opaque():
                sums = emit.accumulators(self.rows, width)
                for acc in sums:
                    for a, n in cut:
                        emit.store(acc, emit.constant(0.0, n), a, lanes=n)
                with T.serial(0, T.int64(self.keys)) as t:
                    values = [
                        T.bind(self.v.load(n, b=batch, h=head, t=t, e=start + a)) for a, n in cut
                    ]
                    for r, acc in enumerate(sums):
                        for (a, n), value in zip(cut, values, strict=True):
                            weight = emit.splat(weights[r, t], n)
                            total = emit.load(acc, a, lanes=n) + weight * value
                            emit.store(acc, total, a, lanes=n)
                where = {"b": batch, "h": head, "s": row}
                self._leave(sums, [(a, start + a, n) for a, n in cut], totals, where)

    def _leave(
        self,
        sums: list[Buffer],
        cut: list[tuple[int, int, int]],
        totals: Buffer,
        where: dict[str, Expr],
    ) -> None:
        """Divide and store; (position in the sums, output, lanes) of each vector."""
        for r, acc in enumerate(sums):
            for a, e, n in cut:
                value = emit.load(acc, a, lanes=n) * emit.splat(totals[r], n)
                self.out.store(value, n, **(where | {"s": where["s"] + r}), e=e)

    def _clear(self, sums: list[Buffer], at: list[int]) -> None:
        for acc in sums:
            for a in at:
                emit.store(acc, emit.constant(0.0, self.lanes), a, lanes=self.lanes)

    def _multiply(
        self, sums: list[Buffer], vectors: list[Expr], scalar: Callable[[int], Expr]
    ) -> None:
        """sums[r] += scalar(r) · vectors."""
        bound = [T.bind(v) for v in vectors]
        for r, acc in enumerate(sums):
            factor = emit.splat(scalar(r), self.lanes)
            for i, vector in enumerate(bound):
                total = emit.load(acc, i * self.lanes, lanes=self.lanes) + factor * vector
                emit.store(acc, total, i * self.lanes, lanes=self.lanes)

"""A batch of products A B of two computed matrices: tiles of rows times vectors of columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cpu.code.tensors import Argument, Size, Tensor, function
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Expr
from bscompile.targets.kernels.vectors import pieces

VECTORS = 2  # vectors of columns per register tile
ROWS = (6, 2)
LEADING = "abcdefgh"


def generate(a: Tensor, b: Tensor, out: Tensor, *, lanes: int, tasks: int) -> Any:
    """The function (a, b, out).

    Args:
        a: Leading axes from LEADING, then i k in any order; leading axes of size one are shared.
        b: Leading axes, then k j.
        out: All leading axes, then i j.
        lanes: Elements of one vector.
        tasks: Parallel tasks.
    """
    leading = out.axes[:-2]

    def body(arguments: list[Argument], size: Callable[[Size], Expr]) -> None:
        left, right, target = arguments
        inner, columns = size(b.size("k")), size(out.size("j"))
        wide = VECTORS * lanes

        def nest(rows: int) -> None:
            tiles = T.int64(emit.tile_count(size(out.size("i")), rows))
            work = tiles
            for axis in leading:
                work = work * size(out.size(axis))

            def task(p: Expr) -> None:
                with T.serial(*emit.share(work, p, tasks)) as item, emit.opaque():
                    where, rest = {}, T.bind(T.floordiv(item, tiles))
                    for axis in reversed(leading):
                        length = T.int64(size(out.size(axis)))
                        where[axis] = T.bind(T.floormod(rest, length))
                        rest = T.bind(T.floordiv(rest, length))
                    tile = T.floormod(item, tiles)
                    row = T.bind(emit.tile_start(size(out.size("i")), rows, tile))
                    _over_columns(columns, wide, lanes, lambda j, cut: product(where, row, j, cut))

            def product(
                where: dict[str, Expr], row: Expr, column: Expr, cut: list[tuple[int, int]]
            ) -> None:
                with emit.opaque():
                    sums = emit.accumulators(rows, wide)
                    for acc in sums:
                        for at, n in cut:
                            emit.store(acc, emit.constant(0.0, n), at, lanes=n)
                    with T.serial(0, T.int64(inner)) as k:
                        values = [
                            T.bind(right.load(n, k=k, j=column + at, **where)) for at, n in cut
                        ]
                        for r, acc in enumerate(sums):
                            factor = left.load(i=row + r, k=k, **where)
                            for (at, n), value in zip(cut, values, strict=True):
                                total = emit.load(acc, at, lanes=n) + emit.splat(factor, n) * value
                                emit.store(acc, total, at, lanes=n)
                    for r, acc in enumerate(sums):
                        for at, n in cut:
                            value = emit.load(acc, at, lanes=n)
                            target.store(value, n, i=row + r, j=column + at, **where)

            emit.parallel_tasks(tasks, task)

        emit.for_row_tiles(size(out.size("i")), ROWS, nest)

    return function("matmul", [a, b, out], body)


def _over_columns(
    columns: Expr, wide: int, lanes: int, emit_tile: Callable[[Expr, list[tuple[int, int]]], None]
) -> None:
    """Call ``emit_tile(first column, vectors)`` so that the tiles cover all columns."""
    whole = T.floordiv(T.int64(columns), T.int64(wide))
    with T.serial(0, whole) as block:
        emit_tile(block * wide, pieces(wide, lanes))
    if isinstance(columns, int):
        if columns % wide:
            emit_tile(T.int64(columns - columns % wide), pieces(columns % wide, lanes))
        return
    vectors = T.floordiv(columns, T.int64(lanes))
    with T.serial(whole * VECTORS, vectors) as block:
        emit_tile(block * lanes, [(0, lanes)])
    with T.serial(vectors * lanes, columns) as column:
        emit_tile(column, [(0, 1)])

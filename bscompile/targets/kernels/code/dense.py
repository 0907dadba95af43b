"""y = x Wᵀ for a dense weight packed in panels of outputs.

A panel is [k, width]: the weights of ``width`` outputs, all of them for one input side by side.
A tile of rows times one panel is accumulated in registers: per input one broadcast of x and
``width / lanes`` multiply-adds for each row.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish_tile
from bscompile.targets.kernels.prefetch import comes_from_memory
from bscompile.targets.kernels.vectors import pieces

CHAINS = 8  # independent sums that hide the latency of the multiply-add
UNROLL = 8  # inputs per loop step; without it LLVM unrolls, and shuffles accumulators


def generate(
    problem: Problem,
    operands: tuple[tuple[str, Array]],
    *,
    rows: int,
    lanes: int,
    tasks: int,
    ahead: int,
) -> Any:
    """The kernel for panels [panels, k, width].

    Args:
        problem: The layer.
        operands: The packed panels.
        rows: Rows of x per tile.
        lanes: Elements of one vector.
        tasks: Parallel tasks; they share (panel, row tile) pairs equally.
        ahead: Bytes to ask ahead where weights come from memory; 0 for not asking.
    """
    panels, k, width = operands[0][1].shape

    def body(args: Arguments) -> None:
        emit.for_rows_of(args, (rows, 4), lambda r: nest(args, r))

    def nest(args: Arguments, tile_rows: int) -> None:
        tiles = T.int64(emit.tile_count(args.m, tile_rows))
        work = tiles * panels

        def task(p: Expr) -> None:
            share = emit.share(work, p, tasks)
            with emit.loop(*share) as item, emit.opaque():
                panel = T.bind(T.floordiv(item, tiles))
                row = T.bind(emit.tile_start(args.m, tile_rows, T.floormod(item, tiles)))
                tile(args, tile_rows, panel, row)

        emit.parallel_tasks(tasks, task)

    def tile(args: Arguments, tile_rows: int, panel: Expr, row: Expr) -> None:
        (weights,) = args.operands
        split = max(1, CHAINS * lanes // (tile_rows * width))
        sums = [emit.accumulators(tile_rows, width) for _ in range(split)]
        vectors = pieces(width, lanes)

        def accumulate(rows_of: list[Buffer], inner: Expr) -> None:
            for at, size in vectors:
                weight = T.bind(emit.weights(weights, panel, inner, at, lanes=size))
                for r, acc in enumerate(rows_of):
                    x = emit.splat(args.x[row + r, inner], size)
                    emit.store(acc, emit.load(acc, at, lanes=size) + x * weight, at, lanes=size)

        for rows_of in sums:
            for acc in rows_of:
                for at, size in vectors:
                    emit.store(acc, emit.constant(0.0, size), at, lanes=size)
        with T.serial(0, T.int64(k // UNROLL)) as step:
            if ahead and comes_from_memory(operands[0][1].nbytes, args.m, tile_rows):
                at = (panel * k + step * UNROLL) * width
                emit.fetch_ahead(weights, at, UNROLL * width, ahead)
            for u in range(UNROLL):
                accumulate(sums[u % split], step * UNROLL + u)
        for u in range(k % UNROLL):
            accumulate(sums[u % split], T.int64(k - k % UNROLL + u))
        # The last panel is moved back over its neighbour, like the last row tile.
        column = T.bind(T.min(panel * width, T.int64(problem.n - width)))

        def value(r: int, at: int, size: int) -> Expr:
            return emit.total([rows_of[r] for rows_of in sums], at, size)

        finish_tile(args, tile_rows, vectors, value, row, column)

    return emit.generate("dense", problem, operands, body)

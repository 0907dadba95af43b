"""What happens between the product and y: bias, residual and activations, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T

from bscompile.dialect import is_activation, is_short
from bscompile.targets.kernels.code.emit import Arguments, Expr, load, opaque, store
from bscompile.targets.kernels.code.vector_math import activate

_STACK = 128  # elements of a buffer that surely stays on the stack


def finish(args: Arguments, value: Expr, row: Expr, column: Expr, lanes: int) -> None:
    """Run the epilogue on y[row, column : column + lanes] and store it."""
    for step, tensor in args.steps:
        if step == "bias":
            value = T.bind(value + load(tensor, column, lanes=lanes))
        elif step == "residual":
            value = T.bind(value + load(tensor, row, column, lanes=lanes))
        else:
            value = T.bind(activate(step, value, lanes))
    store(args.y, args.leave(value, lanes), row, column, lanes=lanes)


def finish_tile(
    args: Arguments,
    rows: int,
    cut: Sequence[tuple[int, int]],
    value: Callable[[int, int, int], Expr],
    row: Expr,
    column: Expr,
) -> None:
    """Run the epilogue on a tile of sums and store it.

    Activations are long, so their code is not repeated for every vector of the tile: the sums
    go through a small buffer that a loop reads. That costs little time and saves most of the
    compile time.

    Args:
        args: The kernel's parameters.
        rows: Rows of the tile.
        cut: (offset, lanes) of the vectors in one row of it.
        value: (row, offset, lanes) -> the sums there.
        row: The tile's first row in y.
        column: Its first column in y.
    """
    width = cut[-1][0] + cut[-1][1]
    group = min(rows, max(1, _STACK // width))
    long = any(is_activation(step) and not is_short(step) for step, _ in args.steps)
    if not long or group == 1:
        for r in range(rows):
            for at, size in cut:
                finish(args, T.bind(value(r, at, size)), row + r, column + at, size)
        return
    for first in range(0, rows, group):
        count = min(group, rows - first)
        with opaque():
            held = T.sblock_alloc_buffer((count, width), "float32")
            for r in range(count):
                for at, size in cut:
                    store(held, value(first + r, at, size), r, at, lanes=size)
            with T.serial(0, T.int64(count)) as r:
                for at, size in cut:
                    done = T.bind(load(held, r, at, lanes=size))
                    finish(args, done, row + first + r, column + at, size)

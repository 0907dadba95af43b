"""Groups of threads that multiply tiles in shared memory.

A group computes ``row_threads * rows`` rows of x against one *panel*: the outputs of a block row,
or ``width`` outputs of a dense weight. A panel's weights are a list of columns [entries, width],
the live blocks' inputs one after the other, so a slice of ``depth`` columns may span blocks or
be a part of one: every block size runs the same code. Each slice of x and of the weights is
fetched once by all threads, then every thread multiplies ``rows`` x ``outputs`` of the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from bscompile.targets.gpu.kernels.code.emit import (
    Buffer,
    Expr,
    allocate,
    opaque,
    threads,
    wait,
    where,
)


@dataclass(frozen=True)
class Tile:
    """Sizes of a group's tile.

    Attributes:
        rows: Rows of x that one thread computes.
        outputs: Outputs that one thread computes; divides ``width``.
        row_threads: Threads along the rows.
        depth: Columns of a slice.
        width: Outputs of a panel.
    """

    rows: int
    outputs: int
    row_threads: int
    depth: int
    width: int

    @property
    def tall(self) -> int:
        """Rows of the group's tile."""
        return self.rows * self.row_threads

    @property
    def threads(self) -> int:
        """Threads of a group."""
        return self.row_threads * self.width // self.outputs

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a group."""
        return 4 * self.depth * (self.tall + self.width)


@dataclass(frozen=True, eq=False)
class Panels:
    """Where a product's numbers come from and go to.

    Attributes:
        m: Rows.
        n: Outputs; the last panel may reach beyond.
        count: Panels.
        bounds: Panel -> its first and last entry.
        x: (row, entry) -> the number that the entry is multiplied by.
        w: (panel, entry, outputs within the panel, how many) -> the weights.
        store: (value, row, output) finishes one sum.
    """

    m: int
    n: int
    count: int
    bounds: Callable[[Expr], tuple[Expr, Expr]]
    x: Callable[[Expr, Expr], Expr]
    w: Callable[[Expr, Expr, Expr, int], Expr]
    store: Callable[[Expr, Expr, Expr], None]


def tiles(panels: Panels, tile: Tile) -> None:
    """Emit the nest."""
    across = tile.width // tile.outputs
    grid = (panels.count, -(-panels.m // tile.tall))
    with threads(grid, (across, tile.row_threads)) as (panel, strip, tx, ty):
        xs = allocate("xs", (tile.tall, tile.depth), "shared")
        ws = allocate("ws", (tile.depth, tile.width), "shared")
        sums = allocate("sums", (tile.rows, tile.outputs), "local")
        for r in range(tile.rows):
            for o in range(tile.outputs):
                T.buffer_store(sums, T.float32(0), [r, o])
        first_row = T.bind(strip * tile.tall)
        first, last = panels.bounds(panel)
        first, last = T.bind(first), T.bind(last)
        thread = T.bind(ty * across + tx)
        with T.serial(0, (last - first + (tile.depth - 1)) // tile.depth) as index, opaque():
            begin = T.bind(first + index * tile.depth)
            _fetch(panels, tile, panel, thread, first_row, begin, last, xs, ws)
            wait()
            _multiply(tile, across, tx, ty, xs, ws, sums)
            wait()
        # Loops, for activations are long and would be repeated for every sum of the thread.
        with T.serial(0, tile.rows) as r, T.serial(0, tile.outputs) as o, opaque():
            row = T.bind(first_row + ty + r * tile.row_threads)
            output = T.bind(panel * tile.width + tx + o * across)
            inside = (
                row < panels.m if panels.m % tile.tall else None,
                output < panels.n if panels.count * tile.width > panels.n else None,
            )
            with where(*inside):
                panels.store(sums[r, o], row, output)


def _fetch(
    panels: Panels,
    tile: Tile,
    panel: Expr,
    thread: Expr,
    first_row: Expr,
    begin: Expr,
    last: Expr,
    xs: Buffer,
    ws: Buffer,
) -> None:
    """Bring a slice of x and of the weights into shared memory; zeros beyond its end."""
    zero = T.float32(0)
    for at in _shares(thread, tile.tall * tile.depth, tile.threads):
        r, d = at // tile.depth, at % tile.depth
        row = T.min(first_row + r, panels.m - 1)
        value = T.if_then_else(begin + d < last, panels.x(row, begin + d), zero)
        T.buffer_store(xs, value, [r, d])
    for at in _shares(thread, tile.depth * tile.width, tile.threads):
        d, o = at // tile.width, at % tile.width
        value = T.if_then_else(begin + d < last, panels.w(panel, begin + d, o, 1), zero)
        T.buffer_store(ws, value, [d, o])


def _shares(thread: Expr, size: int, count: int) -> Iterator[Expr]:
    """What one of ``count`` threads takes of ``size`` numbers.

    A loop and, where they do not divide, a rest: written out, a tall tile makes a shader that
    drivers compile for minutes.
    """
    whole = size // count
    if whole:
        with T.serial(0, whole) as step, opaque():
            yield T.bind(thread + step * count)
    if size % count:
        at = T.bind(thread + whole * count)
        with where(at < size):
            yield at


def _multiply(
    tile: Tile, across: int, tx: Expr, ty: Expr, xs: Buffer, ws: Buffer, sums: Buffer
) -> None:
    with T.serial(0, tile.depth) as d, opaque():
        columns = [T.bind(ws[d, tx + o * across]) for o in range(tile.outputs)]
        for r in range(tile.rows):
            x = T.bind(xs[ty + r * tile.row_threads, d])
            for o, w in enumerate(columns):
                T.buffer_store(sums, sums[r, o] + x * w, [r, o])

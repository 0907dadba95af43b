"""Groups of threads that multiply tiles in shared memory.

A group computes ``row_threads * rows`` rows of x against one *panel*: the outputs of a block row,
or ``width`` outputs of a dense weight. A panel's weights are a list of columns [entries, width],
the live blocks' inputs one after the other, so a slice of ``depth`` columns may span blocks or
be a part of one: every block size runs the same code. Each slice of x and of the weights is
fetched once by all threads, then every thread multiplies ``rows`` x ``outputs`` of the tile.

Slices may be held and multiplied in float16 where weights are stored so: the products of one
slice are summed in float16, the slices in float32. x is rounded then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import tirx as T

from bscompile.targets.gpu.kernels.code.emit import (
    Buffer,
    Expr,
    allocate,
    opaque,
    threads,
    wait,
    where,
    widened,
    zero_of,
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
        dtype: What slices are held and multiplied in.
    """

    rows: int
    outputs: int
    row_threads: int
    depth: int
    width: int
    dtype: str = "float32"

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
        return np.dtype(self.dtype).itemsize * self.depth * (self.tall + self.width)


@dataclass(frozen=True, eq=False)
class Panels:
    """Where a product's numbers come from and go to.

    Attributes:
        m: Rows.
        n: Outputs; the last panel may reach beyond.
        count: Panels.
        bounds: Panel -> its first and last entry.
        x: (row, column) -> a number of x.
        column: Entry -> the column that it is multiplied by.
        run: Entries whose columns follow each other; every panel has whole runs.
        w: (panel, entry, outputs within the panel) -> the weights as they are stored.
        stored: In which dtype that is.
        store: (value, row, output) finishes one sum.
    """

    m: int
    n: int
    count: int
    bounds: Callable[[Expr], tuple[Expr, Expr]]
    x: Callable[[Expr, Expr], Expr]
    column: Callable[[Expr], Expr]
    run: int
    w: Callable[[Expr, Expr, Expr], Expr]
    stored: str
    store: Callable[[Expr, Expr, Expr], None]

    def weights(self, panel: Expr, entry: Expr, outputs: Expr, lanes: int = 1) -> Expr:
        """Weights in float32; ``outputs`` spans ``lanes`` of them."""
        return widened(self.w(panel, entry, outputs), self.stored, lanes)


def tiles(panels: Panels, tile: Tile) -> None:
    """Emit the nest."""
    across = tile.width // tile.outputs
    grid = (panels.count, -(-panels.m // tile.tall))
    with threads(grid, (across, tile.row_threads)) as (panel, strip, tx, ty):
        xs = allocate("xs", (tile.tall, tile.depth), "shared", tile.dtype)
        ws = allocate("ws", (tile.depth, tile.width), "shared", tile.dtype)
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
    zero = zero_of(tile.dtype)
    load = panels.w if tile.dtype == panels.stored else panels.weights
    whole = panels.run % tile.depth == 0  # a slice neither ends early nor spans runs
    start = T.bind(panels.column(begin)) if whole else None
    for at in _shares(thread, tile.tall * tile.depth, tile.threads):
        r, d = at // tile.depth, at % tile.depth
        row = T.min(first_row + r, panels.m - 1)
        value = panels.x(row, panels.column(begin + d) if start is None else start + d)
        value = value if tile.dtype == "float32" else T.cast(value, tile.dtype)
        if not whole:
            value = T.if_then_else(begin + d < last, value, zero)
        T.buffer_store(xs, value, [r, d])
    for at in _shares(thread, tile.depth * tile.width, tile.threads):
        d, o = at // tile.width, at % tile.width
        value = load(panel, begin + d, o)
        if not whole:
            value = T.if_then_else(begin + d < last, value, zero)
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
    apart = tile.dtype != "float32"  # a slice's sums are not those of all slices
    places = [(r, o) for r in range(tile.rows) for o in range(tile.outputs)]
    held = allocate("parts", (tile.rows, tile.outputs), "local", tile.dtype) if apart else sums
    for r, o in places if apart else []:
        T.buffer_store(held, zero_of(tile.dtype), [r, o])
    with T.serial(0, tile.depth) as d, opaque():
        columns = [T.bind(ws[d, tx + o * across]) for o in range(tile.outputs)]
        for r in range(tile.rows):
            x = T.bind(xs[ty + r * tile.row_threads, d])
            for o, w in enumerate(columns):
                T.buffer_store(held, held[r, o] + x * w, [r, o])
    for r, o in places if apart else []:
        T.buffer_store(sums, sums[r, o] + T.cast(held[r, o], "float32"), [r, o])

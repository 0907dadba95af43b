"""One work-item for a tile, for devices whose work-items are loops on a CPU's cores.

Shared memory and barriers only cost there: the caches share what is read. A work-item computes
``rows`` rows of one panel on vectors along the outputs.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from bscompile.targets.gpu.kernels.code.emit import allocate, opaque, threads, where
from bscompile.targets.gpu.kernels.code.tiles import Panels


def direct(panels: Panels, width: int, rows: int, lanes: int) -> None:
    """Emit the nest.

    Args:
        panels: What to multiply.
        width: Outputs of a panel.
        rows: Rows of x that one work-item computes.
        lanes: Outputs of one vector; divides ``width``.
    """
    grid = (panels.count, -(-panels.m // rows))
    with threads(grid, (1, 1)) as (panel, strip, _, _):
        sums = [allocate("sums", (width,), "local") for _ in range(rows)]
        pieces = range(0, width, lanes)
        for held in sums:
            for o in pieces:
                T.buffer_store(held, _splat(T.float32(0), lanes), [_span(o, lanes)])
        first_row = T.bind(strip * rows)
        first, last = panels.bounds(panel)
        first, last = T.bind(first), T.bind(last)
        with T.serial(0, last - first) as index, opaque():
            entry = T.bind(first + index)
            column = T.bind(panels.column(entry))
            weights = [T.bind(panels.weights(panel, entry, _span(o, lanes), lanes)) for o in pieces]
            for r, held in enumerate(sums):
                row = T.min(first_row + r, panels.m - 1) if panels.m % rows else first_row + r
                x = T.bind(_splat(panels.x(row, column), lanes))
                for o, w in zip(pieces, weights, strict=True):
                    span = _span(o, lanes)
                    T.buffer_store(held, held[span] + x * w, [span])
        for r, held in enumerate(sums):
            with T.serial(0, width) as o, opaque():
                row, output = T.bind(first_row + r), T.bind(panel * width + o)
                inside = (
                    row < panels.m if panels.m % rows else None,
                    output < panels.n if panels.count * width > panels.n else None,
                )
                with where(*inside):
                    panels.store(held[o], row, output)


def _span(start: int, lanes: int) -> object:
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def _splat(value: object, lanes: int) -> object:
    return value if lanes == 1 else T.broadcast(value, lanes)

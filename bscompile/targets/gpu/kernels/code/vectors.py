"""Groups of threads for few rows of x: every weight is read once, by neighbours side by side.

A group computes one panel (see tiles.py). Its threads share the panel's entries: ``slices``
threads take every ``slices``-th entry of each output, then one adds up what they found.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from bscompile.targets.gpu.kernels.code.emit import allocate, opaque, threads, wait, where
from bscompile.targets.gpu.kernels.code.tiles import Panels


def vectors(panels: Panels, width: int, slices: int) -> None:
    """Emit the nest.

    Args:
        panels: What to multiply, ``m`` of a few rows.
        width: Outputs of a panel.
        slices: Threads of a group that share one output.
    """
    rows = panels.m
    with threads((panels.count, 1), (width, slices)) as (panel, _, tx, ty):
        parts = allocate("parts", (slices, rows, width), "shared")
        sums = allocate("sums", (rows,), "local")
        for r in range(rows):
            T.buffer_store(sums, T.float32(0), [r])
        first, last = panels.bounds(panel)
        first, last = T.bind(first), T.bind(last)
        with T.serial(0, (last - first + (slices - 1)) // slices) as index, opaque():
            at = T.bind(first + index * slices + ty)
            with where(at < last):
                w = T.bind(panels.weights(panel, at, tx))
                column = T.bind(panels.column(at))
                for r in range(rows):
                    T.buffer_store(sums, sums[r] + panels.x(r, column) * w, [r])
        for r in range(rows):
            T.buffer_store(parts, sums[r], [ty, r, tx])
        wait()
        output = panel * width + tx
        edge = output < panels.n if panels.count * width > panels.n else None
        with where(ty < 1, edge):
            for r in range(rows):
                T.buffer_store(sums, T.float32(0), [r])
                with T.serial(0, slices) as s, opaque():
                    T.buffer_store(sums, sums[r] + parts[s, r, tx], [r])
                panels.store(sums[r], r, output)

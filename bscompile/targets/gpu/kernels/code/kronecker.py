"""The factorized form in two launches, W is never built.

z[row, q, i, r] = Σ_j x[row, q bw + j] b[r, i, j]          a small dense product
y[row, p bh + i] = Σ over live q, r: a[r, p, q] z[row, q, i, r]
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.gpu.kernels.code.emit import (
    Arguments,
    Buffer,
    allocate,
    finish,
    generate,
    opaque,
    threads,
    where,
    widened,
)
from bscompile.targets.gpu.kernels.code.tiles import Panels, Tile, tiles


def generate_kronecker(
    problem: Problem, operands: tuple[tuple[str, Array], ...], tile: Tile, rows: int, span: int
) -> Any:
    """The PrimFunc.

    Args:
        problem: Of the form ``kronecker``.
        operands: As packing.py makes them.
        tile: Of the first launch.
        rows: Rows that one thread of the second launch computes.
        span: Rows of threads of one group of it.
    """
    (bh, bw), rank, m = problem.block, problem.rank, problem.rows
    across = problem.k // bw
    side = rank * bh
    dtype = operands[0][1].dtype.name

    def body(args: Arguments) -> None:
        z = allocate("z", (m * across, side), "global")
        _products(args, z)
        _sums(args, z)

    def _products(args: Arguments, z: Buffer) -> None:
        factors = args.operands[3]
        panels = Panels(
            m=m * across,
            n=side,
            count=-(-side // tile.width),
            bounds=lambda panel: (T.int32(0), T.int32(bw)),
            x=lambda row, column: args.x[row // across, row % across * bw + column],
            column=lambda entry: entry,
            run=bw,
            w=lambda panel, j, o: factors[j, panel * tile.width + o],
            stored=dtype,
            store=lambda value, row, o: T.buffer_store(z, value, [row, o]),
        )
        tiles(panels, tile)

    def _sums(args: Arguments, z: Buffer) -> None:
        coefficients, indices, indptr, _ = args.operands
        tall = rows * span
        with threads((problem.n // bh, -(-m // tall)), (bh, span)) as (p, strip, i, ty):
            sums = allocate("sums", (rows,), "local")
            for r in range(rows):
                T.buffer_store(sums, T.float32(0), [r])
            first = T.bind(indptr[p])
            with T.serial(0, indptr[p + 1] - first) as index, opaque():
                live = T.bind(first + index)
                q = T.bind(indices[live])
                for term in range(rank):
                    a = T.bind(widened(coefficients[live, term], dtype))
                    for r in range(rows):
                        row = T.min(strip * tall + ty + r * span, m - 1)
                        found = z[row * across + q, term * bh + i]
                        T.buffer_store(sums, sums[r] + a * found, [r])
            for r in range(rows):
                row = strip * tall + ty + r * span
                with where(row < m if m % tall else None):
                    finish(args, T.bind(sums[r]), row, p * bh + i)

    return generate("kronecker", problem, operands, body)

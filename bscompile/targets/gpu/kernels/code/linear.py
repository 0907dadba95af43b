"""Dense and block-sparse layers: the same nests, another list of columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.gpu.kernels.code.direct import direct
from bscompile.targets.gpu.kernels.code.emit import Arguments, Expr, finish, generate
from bscompile.targets.gpu.kernels.code.tiles import Panels, Tile, tiles
from bscompile.targets.gpu.kernels.code.vectors import vectors

Operands = tuple[tuple[str, Array], ...]
Nest = Callable[[Panels], None]


def tiled(tile: Tile) -> Nest:
    """The nest for many rows."""
    return lambda panels: tiles(panels, tile)


def sliced(width: int, slices: int) -> Nest:
    """The nest for few rows."""
    return lambda panels: vectors(panels, width, slices)


def single(width: int, rows: int, lanes: int) -> Nest:
    """The nest for CPUs."""
    return lambda panels: direct(panels, width, rows, lanes)


def generate_dense(problem: Problem, operands: Operands, nest: Nest) -> Any:
    """The PrimFunc; the operand is values [panels, k, width]."""
    values = operands[0][1]

    def body(args: Arguments) -> None:
        (weights,) = args.operands
        nest(
            Panels(
                m=problem.rows,
                n=problem.n,
                count=len(values),
                bounds=lambda panel: (T.int32(0), T.int32(problem.k)),
                x=lambda row, column: args.x[row, column],
                column=lambda entry: entry,
                run=problem.k,
                w=lambda panel, entry, o: weights[panel, entry, o],
                stored=values.dtype.name,
                store=lambda value, row, output: finish(args, T.bind(value), row, output),
            )
        )

    return generate("dense_matmul", problem, operands, body)


def generate_block_sparse(problem: Problem, operands: Operands, nest: Nest) -> Any:
    """The PrimFunc; the operands are values [nnzb, bw, bh], starts [nnzb], indptr."""
    values, _, pointers = (array for _, array in operands)
    bw = values.shape[1]

    def body(args: Arguments) -> None:
        weights, starts, indptr = args.operands

        def bounds(panel: Expr) -> tuple[Expr, Expr]:
            return indptr[panel] * bw, indptr[panel + 1] * bw

        nest(
            Panels(
                m=problem.rows,
                n=problem.n,
                count=len(pointers) - 1,
                bounds=bounds,
                x=lambda row, column: args.x[row, column],
                column=lambda entry: starts[entry // bw] + entry % bw,
                run=bw,
                w=lambda _, entry, o: weights[entry // bw, entry % bw, o],
                stored=values.dtype.name,
                store=lambda value, row, output: finish(args, T.bind(value), row, output),
            )
        )

    return generate("block_sparse_matmul", problem, operands, body)

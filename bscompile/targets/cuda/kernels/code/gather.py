"""y = x Wᵀ over packed steps, as blocks that a schedule may place: one meaning for many kernels.

    for each tile row r, tile of m:   for each step j of r:
        XG[j] = the columns of x that the step names      WG[j] = its values
        C += XG[j] WG[j]ᵀ                                 y = epilogue(C)

The gathers are blocks of their own: reading x through the places inside the product would add
predicates that no schedule can prove away. The last tile's missing rows read the last row of x
again; they are not stored. Where tile rows come cut in pieces, each piece has such a loop and
leaves its C in memory, and a second launch makes y of them. The values of a factorized layer are
made where they are needed: WG[j] = Σᵣ A[j, r] ⊗ B[r], with one A[j, r] for each block. Those of a
dense layer that lies as it is are read from its rows, the last one again for those it lacks.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Problem
from bscompile.targets.cuda.kernels.code.signature import (
    Arguments,
    Operands,
    generate,
    lies_plain,
    tiles,
)
from bscompile.targets.cuda.kernels.packing import Layout


def definition(
    problem: Problem, operands: Operands, layout: Layout, rows: int, multiplied: str
) -> Any:
    """The PrimFunc, unscheduled.

    Args:
        problem: The layer.
        operands: As packing.pack_layer makes them, or packing.pack_coefficients.
        layout: How they were cut.
        rows: Rows of x in a tile.
        multiplied: dtype of the values, and of x unless that is int8.
    """
    return generate(
        "block_sparse_steps",
        problem,
        problem.x_dtype if multiplied == "int8" else multiplied,
        operands,
        lambda args: _body(args, problem, layout, rows, cut=is_cut(operands)),
    )


def is_cut(operands: Operands) -> bool:
    """Whether tile rows come in pieces."""
    return any(name == "begins" for name, _ in operands)


def _body(args: Arguments, problem: Problem, layout: Layout, rows: int, *, cut: bool) -> None:
    n, k = problem.n, problem.k
    wide, step, group = layout.rows, layout.step, layout.group
    unit, tile_rows = layout.unit(k), -(-n // wide)
    values, starts, indptr, order = args.operands[:4]
    summed = "float32" if args.integers is None else "int32"
    # Steps of one tile row, at most: the staging buffers need a bound, and keep a few of them.
    bound = -(-k // group) // (step // group) + 1
    partial = None
    if cut:
        tile_rows = indptr.shape[0] - 1  # pieces of them
        partial = T.sblock_alloc_buffer((tile_rows, args.m, wide), summed)
    with T.grid(tile_rows, tiles(args.m, rows)) as (tile, at), T.sblock("outer"):
        vr = T.axis.spatial(tile_rows, tile)
        vm = T.axis.spatial(tiles(args.m, rows), at)
        T.reads(args.x[0 : args.m, 0:k], values[tuple(slice(0, s) for s in values.shape)])
        T.writes(args.y[0 : args.m, 0:n] if partial is None else partial[vr, 0 : args.m, 0:wide])
        # Bound here: with an expression in their place the pipeliner's waits are not constant.
        count = T.bind(indptr[vr + 1] - indptr[vr])
        first = T.bind(indptr[vr])
        # A dense W that lies as it is: where in it the first step's piece begins.
        across = k // step
        corner = T.bind(T.floordiv(first, across)) if lies_plain(values) else None
        column = T.int32(0) if cut else T.bind(order[vr] * wide)
        xg = T.sblock_alloc_buffer((bound, rows, step), str(args.x.dtype))
        wg = T.sblock_alloc_buffer((bound, wide, step), str(values.dtype))
        total = T.sblock_alloc_buffer((rows, wide), summed)
        row_of = _row(args.m, vm, rows)
        with T.grid(T.min(count, bound), rows, step) as (j, i, c), T.sblock("XG"):
            vj, vi, vc = T.axis.remap("SSS", [j, i, c])
            place = starts[first + vj, T.floordiv(vc, group)] * unit + T.floormod(vc, group)
            T.reads(args.x[row_of(vi), 0:k], starts[first + vj, T.floordiv(vc, group)])
            T.writes(xg[vj, vi, vc])
            T.buffer_store(xg, args.x[row_of(vi), place], [vj, vi, vc])
        with T.grid(T.min(count, bound), wide, step) as (j, o, c), T.sblock("WG"):
            vj, vo, vc = T.axis.remap("SSS", [j, o, c])
            if corner is None:
                reads, value = _value(problem, args.operands, first + vj, vo, vc)
            else:
                out = corner * wide + vo if n % wide == 0 else T.min(corner * wide + vo, n - 1)
                value = values[out, (first - corner * across + vj) * step + vc]
                reads = [value]
            T.reads(*reads)
            T.writes(wg[vj, vo, vc])
            T.buffer_store(wg, value, [vj, vo, vc])
        with T.grid(rows, wide, T.min(count, bound), step) as (i, o, j, c), T.sblock("C"):
            vi, vo, vj, vc = T.axis.remap("SSRR", [i, o, j, c])
            T.reads(xg[vj, vi, vc], wg[vj, vo, vc])
            T.writes(total[vi, vo])
            with T.init():
                T.buffer_store(total, T.cast(T.int32(0), summed), [vi, vo])
            product = T.cast(xg[vj, vi, vc], summed) * T.cast(wg[vj, vo, vc], summed)
            T.buffer_store(total, total[vi, vo] + product, [vi, vo])
        with T.grid(rows, wide) as (i, o), T.sblock("Y"):
            vi, vo = T.axis.remap("SS", [i, o])
            row, out = _place(vm, rows, vi), column + vo
            inside = _inside(args.m, rows, row, wide if cut else n, wide, out)
            T.reads(total[vi, vo], *([] if cut else args.reads(row, out)))
            T.writes(args.y[row, out] if partial is None else partial[vr, row, vo])
            with ExitStack() as guards:
                if inside is not None:
                    guards.enter_context(T.If(inside))
                    guards.enter_context(T.Then())
                if partial is None:
                    T.buffer_store(args.y, args.finish(total[vi, vo], row, out), [row, out])
                else:
                    T.buffer_store(partial, total[vi, vo], [vr, row, vo])
    if partial is not None:
        _add_pieces(args, partial, -(-n // wide), n)


def _value(
    problem: Problem, operands: tuple[Any, ...], step: Any, out: Any, column: Any
) -> tuple[list[Any], Any]:
    """(what is read for an element of W, the element)."""
    values = operands[0]
    if problem.form != "kronecker":
        return [values[step, out, column]], values[step, out, column]
    factors, (bh, bw) = operands[4], problem.block
    block = T.floordiv(out, bh), T.floordiv(column, bw)
    inside = T.floormod(out, bh), T.floormod(column, bw)
    reads: list[Any] = []
    total = None
    for r in range(problem.rank):
        pair = values[step, r, *block], factors[r, *inside]
        product = T.cast(pair[0], "float32") * T.cast(pair[1], "float32")
        total = product if total is None else total + product
        reads += pair
    return reads, T.cast(total, str(values.dtype))


def _add_pieces(args: Arguments, partial: Any, tile_rows: int, n: int) -> None:
    """The second launch: a thread for each output of a tile row and each row of x."""
    order, begins = args.operands[3:5]
    wide = int(partial.shape[2])
    with (
        T.thread_binding(0, args.m, "blockIdx.x") as row,
        T.thread_binding(0, tile_rows, "blockIdx.y") as tile,
        T.thread_binding(0, wide, "threadIdx.x") as out,
        T.sblock("add"),
    ):
        T.reads()
        T.writes()
        total = T.sblock_alloc_buffer((1,), str(partial.dtype), scope="local")
        T.buffer_store(total, T.cast(T.int32(0), str(partial.dtype)), [0])
        first = T.bind(begins[tile])
        with T.serial(0, begins[tile + 1] - first) as piece:
            T.buffer_store(total, total[0] + partial[first + piece, row, out], [0])
        column = T.bind(order[tile] * wide + out)
        with T.If(column < n), T.Then():
            T.buffer_store(args.y, args.finish(total[0], row, column), [row, column])


def _place(tile: Any, rows: int, row: Any) -> Any:
    return T.cast(tile, "int64") * rows + row


def _row(m: Any, tile: Any, rows: int) -> Any:
    """The row of x that a tile's row reads: never past the last."""
    if isinstance(m, int) and m % rows == 0:
        return lambda row: _place(tile, rows, row)
    return lambda row: T.min(
        _place(tile, rows, row), T.int64(m - 1) if isinstance(m, int) else m - 1
    )


def _inside(m: Any, rows: int, row: Any, n: int, wide: int, column: Any) -> Any:
    """Whether y has that element; None where every tile is whole."""
    tests = []
    if not isinstance(m, int) or m % rows:
        tests.append(row < m)
    if n % wide:
        tests.append(column < n)
    return T.And(*tests) if len(tests) == 2 else tests[0] if tests else None

"""y = x Wᵀ for W = Σᵣ Aᵣ ⊗ Bᵣ in one launch: W is never built, Z stays in shared memory.

    Z[row, j, r, :] = x[row, block column j] Bᵣᵀ            for every block column, once
    y[row, block row i] = Σ over live (i, j), r:  A[i, j, r] Z[row, j, r, :]

A thread block takes ``rows`` rows of x and a chunk of the block rows; zero entries of S are not in
the list of coefficients, so they cost nothing.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Problem
from bscompile.targets.cuda.kernels.code.signature import Arguments, Operands, generate, tiles


def kernel(problem: Problem, operands: Operands, *, rows: int, chunks: int, threads: int) -> Any:
    """The PrimFunc.

    Args:
        problem: The layer.
        operands: As templates pack them: coefficients, indices, indptr, factors.
        rows: Rows of x that a thread block takes together.
        chunks: Parts that the block rows are cut into; each part makes Z for itself.
        threads: Of a thread block.
    """
    return generate(
        "factorized",
        problem,
        problem.x_dtype,
        operands,
        lambda args: _body(args, problem, rows, chunks, threads),
    )


def _body(args: Arguments, problem: Problem, rows: int, chunks: int, threads: int) -> None:
    coefficients, indices, indptr, factors = args.operands
    (bh, bw), rank = problem.block, problem.rank
    block_rows, block_cols = problem.n // bh, problem.k // bw
    share = -(-block_rows // chunks)
    with (
        T.thread_binding(0, chunks, "blockIdx.y") as chunk,
        T.thread_binding(0, tiles(args.m, rows), "blockIdx.x") as tile,
        T.thread_binding(0, threads, "threadIdx.x") as thread,
        T.sblock("factorized"),
    ):
        T.reads()
        T.writes()
        held = T.sblock_alloc_buffer((rows, block_cols, rank, bh), "float32", scope="shared.dyn")
        total = T.sblock_alloc_buffer((1,), "float32", scope="local")
        items = rows * block_cols * rank * bh
        with T.serial(-(-items // threads)) as turn:
            item = T.bind(turn * threads + thread)
            with T.If(item < items), T.Then():
                p = T.bind(T.floormod(item, bh))
                r = T.bind(T.floormod(T.floordiv(item, bh), rank))
                j = T.bind(T.floormod(T.floordiv(item, bh * rank), block_cols))
                local = T.bind(T.floordiv(item, bh * rank * block_cols))
                row = T.bind(_row(args.m, tile, rows, local))
                T.buffer_store(total, T.float32(0), [0])
                with T.serial(bw) as q:
                    product = _wide(args.x[row, j * bw + q]) * _wide(factors[r, q, p])
                    T.buffer_store(total, total[0] + product, [0])
                T.buffer_store(held, total[0], [local, j, r, p])
        T.evaluate(T.tvm_storage_sync("shared.dyn"))
        items = rows * share * bh
        with T.serial(-(-items // threads)) as turn:
            item = T.bind(turn * threads + thread)
            p = T.bind(T.floormod(item, bh))
            i = T.bind(chunk * share + T.floormod(T.floordiv(item, bh), share))
            local = T.bind(T.floordiv(item, bh * share))
            row = T.bind(T.cast(tile, "int64") * rows + local)
            inside = T.And(T.And(item < items, i < block_rows), row < args.m)
            with T.If(inside), T.Then():
                T.buffer_store(total, T.float32(0), [0])
                first = T.bind(indptr[i])
                with T.serial(0, indptr[i + 1] - first) as live:
                    j = T.bind(indices[first + live])
                    with T.unroll(rank) as r:
                        term = _wide(coefficients[first + live, r]) * held[local, j, r, p]
                        T.buffer_store(total, total[0] + term, [0])
                column = i * bh + p
                T.buffer_store(args.y, args.finish(total[0], row, column), [row, column])


def _row(m: Any, tile: Any, rows: int, row: Any) -> Any:
    last = T.int64(m - 1) if isinstance(m, int) else m - 1
    return T.min(T.cast(tile, "int64") * rows + row, last)


def _wide(value: Any) -> Any:
    return T.cast(value, "float32")

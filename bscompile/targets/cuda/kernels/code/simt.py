"""The schedule of packed steps on CUDA cores: float32 throughout, for what tensor cores round.

A thread block of ``threads_m x threads_n`` threads owns one tile of y, and each thread the sums of
neighbouring rows and outputs of it. Rows in shared memory are one word longer than a step, so that
threads which read the same column of different rows meet different banks.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.s_tir import Schedule

from bscompile.targets.base import Problem
from bscompile.targets.cuda.kernels.code.gather import definition
from bscompile.targets.cuda.kernels.code.signature import Operands
from bscompile.targets.cuda.kernels.packing import Layout


def kernel(
    problem: Problem,
    operands: Operands,
    layout: Layout,
    *,
    rows: int,
    threads_m: int,
    threads_n: int,
) -> Any:
    """The scheduled PrimFunc.

    Args:
        problem: The layer, in float32.
        operands: As packing.pack_steps makes them.
        layout: How they were cut; ``layout.rows`` is a multiple of ``threads_n``.
        rows: Rows of x in a tile; a multiple of ``threads_m``.
        threads_m: Threads side by side along the rows.
        threads_n: And along the outputs.
    """
    func = definition(problem, operands, layout, rows, "float32")
    sch = Schedule(tvm.IRModule({"main": func}))
    row, tile = sch.get_loops(sch.get_sblock("outer"))
    sch.bind(row, "blockIdx.y")
    sch.bind(tile, "blockIdx.x")

    inner, finish = sch.get_sblock("C"), sch.get_sblock("Y")
    i, n, step, c = sch.get_loops(inner)
    (i_thread, i_own), (n_thread, n_own) = (
        sch.split(loop, [threads, None]) for loop, threads in ((i, threads_m), (n, threads_n))
    )
    sch.reorder(i_thread, n_thread, step, c, i_own, n_own)
    sch.bind(i_thread, "threadIdx.y")
    sch.bind(n_thread, "threadIdx.x")
    for name in ("XG", "WG"):
        block = sch.get_sblock(name)
        sch.set_scope(block, 0, "shared")
        sch.compute_at(block, step)
        flat = sch.fuse(*sch.get_loops(block)[-2:])
        _, y, x = sch.split(flat, [None, threads_m, threads_n])
        sch.bind(y, "threadIdx.y")
        sch.bind(x, "threadIdx.x")
        sch.storage_align(block, 0, axis=-2, factor=32, offset=1)
    sch.set_scope(inner, 0, "local")
    sch.reverse_compute_at(finish, n_thread)
    for own in (i_own, n_own):
        sch.unroll(own)
    sch.decompose_reduction(inner, step)
    return sch.mod["main"]

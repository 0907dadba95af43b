"""The epilogue as a launch of its own: what a product needs that somebody else made."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Problem
from bscompile.targets.cuda.kernels.code.signature import Arguments, generate

_THREADS = 256
_OWN = 4  # outputs of a thread, so far apart that a warp's lie side by side


def kernel(problem: Problem) -> Any:
    """The PrimFunc (x, *epilogue tensors, y): y holds x Wᵀ and becomes the layer's. x is not read.

    Args:
        problem: The layer, whose products are in the dtype of y.
    """
    return generate("epilogue", problem, problem.x_dtype, (), lambda args: _body(args, problem.n))


def _body(args: Arguments, n: int) -> None:
    with (
        T.thread_binding(0, args.m, "blockIdx.x") as row,
        T.thread_binding(0, -(-n // (_OWN * _THREADS)), "blockIdx.y") as part,
        T.thread_binding(0, _THREADS, "threadIdx.x") as thread,
        T.sblock("epilogue"),
    ):
        T.reads()
        T.writes()
        with T.unroll(_OWN) as own:
            column = T.bind((part * _OWN + own) * _THREADS + thread)
            with T.If(column < n), T.Then():
                total = args.y[row, column]
                T.buffer_store(args.y, args.finish(total, row, column), [row, column])

"""What happens between the product and y: bias, residual and activations, step by step."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code.emit import Arguments, Expr, load, store
from bscompile.targets.kernels.code.vector_math import ACTIVATIONS


def finish(args: Arguments, value: Expr, row: Expr, column: Expr, lanes: int) -> None:
    """Run the epilogue on y[row, column : column + lanes] and store it."""
    for step, tensor in args.steps:
        if step == "bias":
            value = T.bind(value + load(tensor, column, lanes=lanes))
        elif step == "residual":
            value = T.bind(value + load(tensor, row, column, lanes=lanes))
        else:
            value = T.bind(ACTIVATIONS[step](value, lanes))
    store(args.y, value, row, column, lanes=lanes)

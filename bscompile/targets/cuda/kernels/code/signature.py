"""What every kernel of this target takes, and what happens between the sum and y."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bscompile.dialect import TENSOR_STEPS
from bscompile.dialect.quantization import LIMITS
from bscompile.targets.base import Array, Problem
from bscompile.targets.cuda.kernels.code.integers import Integers, quantized
from bscompile.targets.gpu.kernels.code.activations import activate

#: A kernel's attribute that tells its epilogue, where its first two arguments are x and W, both in
#: one floating dtype and row by row: what any other dense product takes, too.
PLAIN = "bscompile.plain"

Expr = Any  # a TIR expression or an int
Buffer = Any
Operands = tuple[tuple[str, Array], ...]


@dataclass(frozen=True)
class Arguments:
    """A kernel's parameters inside its body.

    Attributes:
        m: Rows of x and y: an int, or an int64 variable.
        x: [m, k], in what is multiplied.
        y: [m, n], in the problem's y_dtype.
        operands: The packed weight's buffers.
        steps: Epilogue steps with their tensor, None for activations.
        integers: What an int8 layer's sums stand for; None for others.
    """

    m: Expr
    x: Buffer
    y: Buffer
    operands: tuple[Buffer, ...]
    steps: tuple[tuple[str, Buffer | None], ...]
    integers: Integers | None = None

    def finish(self, total: Expr, row: Expr, column: Expr) -> Expr:
        """The epilogue of y[row, column], in float32, rounded to y's dtype at the end."""
        if self.integers is not None:
            total = self.integers.real(total, row, column)
        for step, tensor in self.steps:
            if step == "bias":
                assert tensor is not None
                total = total + T.cast(tensor[column], "float32")
            elif step == "residual":
                assert tensor is not None
                total = total + T.cast(tensor[row, column], "float32")
            else:
                total = _gelu(total) if step == "gelu" else activate(step, total)
        if str(self.y.dtype) in LIMITS and self.integers is not None:
            return self.integers.leave(total, str(self.y.dtype))
        return T.cast(total, str(self.y.dtype))

    def reads(self, row: Expr, column: Expr) -> list[Any]:
        """The elements of other tensors that y[row, column] takes."""
        integers = [] if self.integers is None else self.integers.reads(row, column)
        return integers + [
            tensor[column] if step == "bias" else tensor[row, column]
            for step, tensor in self.steps
            if tensor is not None
        ]


def generate(
    name: str,
    problem: Problem,
    x_dtype: str,
    operands: Operands,
    body: Callable[[Arguments], None],
    *,
    s_tir: bool = True,
) -> Any:
    """The PrimFunc (x, *operands, *epilogue tensors, y) with the statements that ``body`` emits.

    Args:
        name: Of the kernel in profiles.
        problem: The layer; the epilogue's tensors have the dtype of y, or float32 in int8.
        x_dtype: In which the kernel takes x, see Kernel.x_dtype.
        operands: The packed weight; of an int8 layer the last three are what
            ``quantized_operands`` gives. Such a layer quantises x in launches of its own.
        body: Emits the kernel.
        s_tir: Whether in TVM's dialect of loops that are bound to threads and that a schedule may
            place; else in that of what each thread does, see pipeline.TIR_PIPELINE.
    """
    beside = "float32" if problem.dtype == "int8" else problem.y_dtype
    with IRBuilder() as builder:
        with T.prim_func(s_tir=s_tir):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            if operands and _is_product(problem, x_dtype, operands[0][1]):
                T.func_attr({PLAIN: ",".join(problem.epilogue)})
            m = problem.m if problem.m is not None else T.int64()
            x = T.arg("x", T.handle())
            weights = [T.arg(suffix, T.handle()) for suffix, _ in operands]
            wanted = [step for step in problem.epilogue if step in TENSOR_STEPS]
            tensors = [T.arg(f"{step}{i}", T.handle()) for i, step in enumerate(wanted)]
            y = T.arg("y", T.handle())
            shapes = {"bias": (problem.n,), "residual": (m, problem.n)}
            x_buffer = T.match_buffer(x, (m, problem.k), x_dtype)
            # The first axis counts what depends on the pattern: symbolic, so that layers which
            # differ in nothing else share their code.
            weight_buffers = tuple(
                T.match_buffer(handle, (T.int64(), *array.shape[1:]), array.dtype.name)
                for handle, (_, array) in zip(weights, operands, strict=True)
            )
            buffers = [
                T.match_buffer(handle, shapes[step], beside)
                for handle, step in zip(tensors, wanted, strict=True)
            ]
            y_buffer = T.match_buffer(y, (m, problem.n), problem.y_dtype)
            steps = tuple(
                (step, buffers.pop(0) if step in TENSOR_STEPS else None)
                for step in problem.epilogue
            )
            integers = None
            if problem.dtype == "int8":
                x_buffer, integers = quantized(m, x_buffer, weight_buffers[-3:], problem)
            body(Arguments(m, x_buffer, y_buffer, weight_buffers, steps, integers))
        return builder.get()


def _is_product(problem: Problem, x_dtype: str, values: Array) -> bool:
    """Whether y is the epilogue of a product that others could make just as exactly."""
    floating = problem.dtype not in ("int8", "tf32") and problem.y_dtype == "float32"
    return floating and values.ndim == 2 and values.dtype.name == x_dtype


def lies_plain(values: Buffer) -> bool:
    """Whether a layer's numbers are W itself, [n, k]: see packing.pack_steps."""
    return len(values.shape) == 2


def tiles(m: Expr, rows: int) -> Expr:
    """Tiles of ``rows`` rows that cover m."""
    return -(-m // rows) if isinstance(m, int) else T.floordiv(m + (rows - 1), T.int64(rows))


def _gelu(x: Expr) -> Expr:
    """CUDA has an erf of its own."""
    return x * T.float32(0.5) * (T.float32(1) + T.erf(x * T.float32(math.sqrt(0.5))))

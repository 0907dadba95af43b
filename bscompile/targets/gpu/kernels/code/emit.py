"""What the generated kernels share: signature, threads, the epilogue, weights of two bytes.

All sizes are fixed and all indices int32: WebGPU has no wider ones. Work runs in opaque blocks
(``T.sblock`` with empty reads and writes), which no later pass may move or split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bscompile.dialect import TENSOR_STEPS
from bscompile.targets.base import Array, Problem
from bscompile.targets.gpu.kernels.code.activations import activate

Expr = Any  # a TIR expression or an int
Buffer = Any


@dataclass(frozen=True)
class Arguments:
    """A kernel's parameters inside its body.

    Attributes:
        x: float32 [m, k].
        y: float32 [m, n].
        operands: The packed weight's buffers.
        steps: Epilogue steps with their tensor, None for activations.
    """

    x: Buffer
    y: Buffer
    operands: tuple[Buffer, ...]
    steps: tuple[tuple[str, Buffer], ...]


def generate(
    name: str,
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    body: Callable[[Arguments], None],
) -> Any:
    """The PrimFunc (x, *operands, *epilogue tensors, y) with the nests that ``body`` emits."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            m, n = problem.rows, problem.n
            x = _argument("x", (m, problem.k), "float32")
            weights = tuple(_argument(s, array.shape, array.dtype.name) for s, array in operands)
            shapes = {"bias": (n,), "residual": (m, n)}
            steps = tuple(
                (
                    step,
                    _argument(f"{step}{i}", shapes[step], "float32")
                    if step in TENSOR_STEPS
                    else None,
                )
                for i, step in enumerate(problem.epilogue)
            )
            y = _argument("y", (m, n), "float32")
            with T.sblock("root"):
                body(Arguments(x, y, weights, steps))
        return builder.get()


def _argument(name: str, shape: tuple[int, ...], dtype: str) -> Buffer:
    return T.arg(name, T.Buffer(shape, dtype))


@contextmanager
def threads(grid: Sequence[int], block: Sequence[int]) -> Iterator[list[Expr]]:
    """Bind a nest; yields blockIdx.x, .y and threadIdx.x, .y.

    Args:
        grid: Groups along x and y.
        block: Threads of a group along x and y.
    """
    tags = ("blockIdx.y", "blockIdx.x", "threadIdx.y", "threadIdx.x")
    extents = (grid[1], grid[0], block[1], block[0])
    with ExitStack() as stack:
        by, bx, ty, tx = (
            stack.enter_context(T.thread_binding(extent, thread=tag))
            for tag, extent in zip(tags, extents, strict=True)
        )
        stack.enter_context(opaque())
        yield [bx, by, tx, ty]


@contextmanager
def opaque() -> Iterator[None]:
    """A block that later passes leave alone; tiles and sums are allocated inside it."""
    with T.sblock("group"):
        T.reads()
        T.writes()
        yield


def allocate(name: str, shape: Sequence[int], scope: str, dtype: str = "float32") -> Buffer:
    """Memory of a group (``shared``), of a thread (``local``) or of all (``global``)."""
    return IRBuilder.name(name, T.sblock_alloc_buffer(tuple(shape), dtype, scope=scope))


def zero_of(dtype: str) -> Expr:
    """Nothing, in float32 or float16."""
    return T.float32(0) if dtype == "float32" else T.cast(T.float32(0), dtype)


def wait() -> None:
    """All threads of the group have come here, and see what the others wrote."""
    T.evaluate(T.tvm_storage_sync("shared"))


@contextmanager
def where(*conditions: Expr | None) -> Iterator[None]:
    """Only where all conditions hold; None always does."""
    tests = [test for test in conditions if test is not None]
    if not tests:
        yield
        return
    with T.If(T.And(*tests) if len(tests) == 2 else tests[0]), T.Then():
        yield


def widened(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    """A stored weight, or a vector of them, as float32.

    ``uint16`` holds the bits of a float16, for devices that know no such type: its exponent and
    mantissa, moved into those of a float32, are the number times 2**-112.
    """
    if dtype == "float32":
        return value
    suffix = "" if lanes == 1 else f"x{lanes}"
    if dtype != "uint16":
        return T.cast(value, f"float32{suffix}")

    def constant(number: int) -> Expr:
        return T.uint32(number) if lanes == 1 else T.broadcast(T.uint32(number), lanes)

    bits = T.cast(value, f"uint32{suffix}")
    magnitude = T.shift_left(T.bitwise_and(bits, constant(0x7FFF)), constant(13))
    sign = T.shift_left(T.bitwise_and(bits, constant(0x8000)), constant(16))
    number = T.reinterpret(f"float32{suffix}", T.bitwise_or(magnitude, sign))
    scale = T.float32(2.0**112)
    return number * (scale if lanes == 1 else T.broadcast(scale, lanes))


def finish(args: Arguments, value: Expr, row: Expr, column: Expr) -> None:
    """Run the epilogue on y[row, column] and store it."""
    for step, tensor in args.steps:
        if step == "bias":
            value = T.bind(value + tensor[column])
        elif step == "residual":
            value = T.bind(value + tensor[row, column])
        else:
            value = T.bind(activate(step, T.bind(value)))
    T.buffer_store(args.y, value, [row, column])

"""Building blocks of generated kernels: signature, tasks, tiles of rows, vectors.

Kernels are generated as fully unrolled TIR on explicit vectors. Three facts of TVM's LLVM
back end shape everything here:

* Accumulators stay in registers when each is a buffer of at most 512 bytes in the default
  scope; scope ``local`` goes through memory.
* Buffers are declared with element alignment, so that every vector access is unaligned: views
  of intermediate tensors may begin anywhere, and the instructions cost the same.
* ``T.sblock`` with empty reads and writes is opaque: no later pass may move or split it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bscompile.dialect import TENSOR_STEPS
from bscompile.targets.base import Array, Problem, Recipe
from bscompile.targets.tir_passes import SIZED

Expr = Any  # a TIR expression or an int
Buffer = Any

#: Attribute of a kernel: what its layer is multiplied in.
PRECISION = "bscompile.precision"

_LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Arguments:
    """A kernel's parameters inside its body.

    Attributes:
        m: Rows of x and y: an int, or an int64 variable.
        x: [m, k], or what the kernel says, float32 unless the kernel is generated for another.
        y: [m, n], likewise.
        operands: The packed weight's buffers.
        steps: Epilogue steps with their tensor, None for activations.
        leave: (value, lanes) -> the same as y holds it.
        least: What a symbolic m is known to be at least.
        most: What a symbolic m is known to be at most; None for no limit.
    """

    m: Expr
    x: Buffer
    y: Buffer
    operands: tuple[Buffer, ...]
    steps: tuple[tuple[str, Buffer | None], ...]
    leave: Callable[[Expr, int], Expr] = lambda value, lanes: value
    least: int = 1
    most: int | None = None


@dataclass(frozen=True, eq=False)
class Statements(Recipe):
    """The recipe of a function (x, *operands, *epilogue tensors, y).

    Attributes:
        name: Of the function.
        problem: The layer.
        operands: The packed weight.
        body: Emits the statements.
        x_shape: Of x where it is not [m, k]; None stands for a symbolic length.
    """

    name: str
    problem: Problem
    operands: Sequence[tuple[str, Array]]
    body: Callable[[Arguments], None]
    x_shape: tuple[int | None, ...] = ()

    def prim_func(self) -> Any:
        """The function."""
        return _function(self.name, self.problem, self.operands, self.body, self.x_shape)


def generate(
    name: str,
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    body: Callable[[Arguments], None],
    x_shape: tuple[int | None, ...] = (),
) -> Statements:
    """The recipe of a kernel; arguments as of Statements."""
    return Statements(name, problem, operands, body, x_shape)


def _function(
    name: str,
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    body: Callable[[Arguments], None],
    x_shape: tuple[int | None, ...],
) -> Any:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            sized = {SIZED: True} if problem.m is None else {}
            T.func_attr({"global_symbol": name, "tirx.noalias": True, **sized})
            T.func_attr({PRECISION: problem.dtype})
            m = problem.m if problem.m is not None else T.int64()
            x = T.arg("x", T.handle())
            weights = [T.arg(suffix, T.handle()) for suffix, _ in operands]
            wanted = [step for step in problem.epilogue if step in TENSOR_STEPS]
            tensors = [T.arg(f"{step}{i}", T.handle()) for i, step in enumerate(wanted)]
            y = T.arg("y", T.handle())
            shapes = {"bias": (problem.n,), "residual": (m, problem.n)}
            lengths = tuple(T.int64() if s is None else s for s in x_shape) or (m, problem.k)
            x_buffer = _match(x, lengths, problem.x_dtype)
            # The first axis counts what depends on the pattern, such as live blocks: symbolic,
            # so that layers which differ in nothing else share their code.
            weight_buffers = tuple(
                _match(handle, (T.int64(), *array.shape[1:]), array.dtype.name)
                for handle, (_, array) in zip(weights, operands, strict=True)
            )
            tensor_buffers = [
                _match(handle, shapes[step], "float32")
                for handle, step in zip(tensors, wanted, strict=True)
            ]
            y_buffer = _match(y, (m, problem.n), problem.y_dtype)
            steps = tuple(
                (step, tensor_buffers.pop(0) if step in TENSOR_STEPS else None)
                for step in problem.epilogue
            )
            body(Arguments(m, x_buffer, y_buffer, weight_buffers, steps))
        return builder.get()


def _match(handle: Any, shape: tuple[Expr, ...], dtype: str) -> Buffer:
    return T.match_buffer(handle, shape, dtype, align=min(4, np.dtype(dtype).itemsize))


@contextmanager
def opaque() -> Iterator[None]:
    """A block that later passes leave alone; accumulators are allocated inside it."""
    with T.sblock("tile"):
        T.reads()
        T.writes()
        yield


@contextmanager
def loop(first: Expr, last: Expr) -> Iterator[Expr]:
    """A serial loop over [first, last); yields the index.

    TVM forgets to shift the bounds of inner loops when an outer one does not begin at zero, so
    every loop here does.
    """
    with T.serial(0, last - first) as step:
        yield first + step


def loop_by(first: Expr, last: Expr, group: int, body: Callable[[Expr, int], None]) -> None:
    """``body(index, place)`` over [first, last): groups of places 0, 1.., the rest at place 0."""
    groups = T.bind(T.truncdiv(last - first, T.int32(group))) if group > 1 else 0
    if group > 1:
        with T.serial(0, groups) as step:
            for place in range(group):
                body(first + step * group + place, place)
    with loop(first + groups * group, last) as index:
        body(index, 0)


def accumulators(count: int, size: int, dtype: str = "float32") -> list[Buffer]:
    """``count`` register-resident buffers of ``size`` 32-bit elements, at most 128."""
    return [T.sblock_alloc_buffer((size,), dtype) for _ in range(count)]


def parallel_tasks(tasks: int, body: Callable[[Expr], None]) -> None:
    """Run ``body(p)`` for p in [0, tasks), each on a worker of its own."""
    if tasks == 1:
        body(T.int64(0))
    else:
        with T.parallel(0, tasks) as p:
            body(T.cast(p, "int64"))


def share(work: Expr, task: Expr, tasks: int) -> tuple[Expr, Expr]:
    """The task's equal part of [0, work)."""
    if tasks == 1:
        return T.int64(0), work
    return T.floordiv(task * work, T.int64(tasks)), T.floordiv((task + 1) * work, T.int64(tasks))


def for_rows_of(args: Arguments, sizes: Sequence[int], emit: Callable[[int], None]) -> None:
    """``for_row_tiles`` with what is known about a kernel's m."""
    for_row_tiles(args.m, sizes, emit, args.least, args.most)


def ranges_of(
    task: Expr, tasks: int, split: str, tiles: Expr, block_rows: int, bounds: Buffer
) -> tuple[tuple[Expr, Expr], tuple[Expr, Expr]]:
    """What one task of a kernel over row tiles and block rows does: the range of each.

    Args:
        task: Its number.
        tasks: How many there are.
        split: What they share: ``rows``, in equal parts, or ``outputs``, as ``bounds`` say.
        tiles: Row tiles.
        block_rows: Block rows of W.
        bounds: int32 [tasks + 1], the block rows of each task.
    """
    if split == "rows":
        return share(tiles, task, tasks), (T.int64(0), T.int64(block_rows))
    first, last = (T.cast(bounds[task + end], "int64") for end in (0, 1))
    return (T.int64(0), tiles), (first, last)


def for_row_tiles(
    m: Expr,
    sizes: Sequence[int],
    emit: Callable[[int], None],
    least: int = 1,
    most: int | None = None,
) -> None:
    """Emit the kernel for tiles of the first size that m allows; 1 always does.

    A tile never reaches over row m: the last one is moved back over its neighbour (see
    ``tile_start``), which needs m >= rows. So a symbolic m gets a chain of smaller tiles.

    Args:
        m: Rows of x.
        sizes: Rows of a tile, the preferred size first.
        emit: Emits the whole kernel for one size.
        least: What m is known to be at least.
        most: What m is known to be at most; None for no limit.
    """
    chain = [size for size in (*sizes, 1) if size <= sizes[0]]
    chain = sorted(set(chain), reverse=True)
    if isinstance(m, int):
        emit(next((size for size in chain if size <= m), 1))
        return
    if most is not None:
        chain = [size for size in chain if size <= most]
    sure = next(place for place, size in enumerate(chain) if size <= max(1, least))
    _emit_chain(m, chain[: sure + 1], emit)


def _emit_chain(m: Expr, chain: list[int], emit: Callable[[int], None]) -> None:
    if len(chain) == 1:
        emit(chain[0])
        return
    with T.If(m >= chain[0]):
        with T.Then():
            emit(chain[0])
        with T.Else():
            _emit_chain(m, chain[1:], emit)


def tile_count(m: Expr, rows: int) -> Expr:
    """Tiles of ``rows`` rows that cover m."""
    return -(-m // rows) if isinstance(m, int) else T.floordiv(m + (rows - 1), T.int64(rows))


def tile_start(m: Expr, rows: int, tile: Expr) -> Expr:
    """First row of a tile; the last tile overlaps the one before and repeats its results."""
    tile = T.cast(tile, "int64")
    if rows == 1 or (isinstance(m, int) and m % rows == 0):
        return tile * rows
    return T.min(tile * rows, T.int64(m) - rows if isinstance(m, int) else m - rows)


def span(start: Expr, lanes: int) -> Expr:
    """The index of ``lanes`` consecutive elements."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def spread(value: Expr, count: int, lanes: int) -> Expr:
    """Each of the ``count`` elements of a value as often in a row as ``lanes`` have room for."""
    if count == 1:
        return splat(value, lanes)
    if count == lanes:
        return value
    order = [tirx.IntImm("int32", lane * count // lanes) for lane in range(lanes)]
    # A shuffle may not have more lanes than it is given.
    return tirx.Shuffle([T.bind(value)] * (lanes // count), order)


def part(value: Expr, at: int, lanes: int) -> Expr:
    """Elements [at, at + lanes) of a vector."""
    return tirx.Shuffle([value], [tirx.IntImm("int32", at + lane) for lane in range(lanes)])


def joined(values: Sequence[Expr], lanes: int) -> Expr:
    """Vectors of ``lanes`` elements each, end to end."""
    order = [tirx.IntImm("int32", lane) for lane in range(len(values) * lanes)]
    return T.bind(tirx.Shuffle([T.bind(value) for value in values], order))


def constant(value: float, lanes: int) -> Expr:
    """A float32 constant in every lane."""
    return splat(T.float32(value), lanes)


def load(buffer: Buffer, *index: Expr, lanes: int) -> Expr:
    """``lanes`` consecutive elements beginning at ``index``."""
    return buffer[(*index[:-1], span(index[-1], lanes))]


def weights(buffer: Buffer, *index: Expr, lanes: int) -> Expr:
    """``lanes`` weights as float32: float16 and the bits of bfloat16 widen in registers."""
    value = load(buffer, *index, lanes=lanes)
    shape = "" if lanes == 1 else f"x{lanes}"
    if str(buffer.dtype) == "float16":
        return T.cast(value, f"float32{shape}")
    if str(buffer.dtype) != "uint16":
        return value
    bits = T.shift_left(T.cast(value, f"uint32{shape}"), splat(T.uint32(16), lanes))
    return T.reinterpret(f"float32{shape}", bits)


def fetch_ahead(buffer: Buffer, at: Expr, count: int, ahead: int) -> None:
    """Bring elements of a flattened buffer into the second cache, some way after ``at``.

    Past its end is fine. A core waits for memory with as many loads under way as its nearest cache
    keeps book of, and follows its own guesses no further than a page; asking further ahead for
    the larger cache overcomes both: half as much again on a Zen 4, most with small blocks.

    Args:
        buffer: Read once, from front to back.
        at: Where the reader is, in elements.
        count: Elements until it asks again.
        ahead: Bytes from ``at`` to what is asked for.
    """
    size = np.dtype(str(buffer.dtype)).itemsize
    for line in range(0, count * size, _LINE):
        address = buffer.access_ptr("r", offset=at + (ahead + line) // size)
        wanted = [T.int32(0), T.int32(2), T.int32(1)]  # to read, into the second cache, data
        T.evaluate(T.call_llvm_intrin("llvm.prefetch", address, *wanted, dtype="void"))


def store(buffer: Buffer, value: Expr, *index: Expr, lanes: int) -> None:
    """Write ``lanes`` consecutive elements beginning at ``index``."""
    T.buffer_store(buffer, value, [*index[:-1], span(index[-1], lanes)])


def folded(value: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes of a vector in one number, halves first."""
    value = T.bind(value)
    while lanes > 1:
        lanes //= 2
        value = T.bind(combine(part(value, 0, lanes), part(value, lanes, lanes)))
    return value


def total(sums: Sequence[Buffer], at: Expr, lanes: int, parts: int = 1) -> Expr:
    """The sum of the same vector of several buffers, and of ``parts`` equal runs that they hold."""
    if parts > 1:
        width = int(sums[0].shape[0]) // parts
        value = T.bind(total(sums, 0, width * parts))
        while parts > 1:
            parts //= 2
            low, high = (part(value, first, width * parts) for first in (0, width * parts))
            value = T.bind(low + high)
        return value if lanes == width else part(value, at, lanes)
    value = load(sums[0], at, lanes=lanes)
    for other in sums[1:]:
        value = value + load(other, at, lanes=lanes)
    return value

"""y = x Wᵀ on vectors whose length the processor tells when it runs: SVE and RVV.

A vector is ``vscale`` times ``lanes`` elements. One block row of W times a tile of rows of x is
accumulated in one vector for each row; where a vector is shorter than the block, further vectors
follow, and where it is longer, lanes beyond the block are switched off by a predicate. So one
binary is right for every vector length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish_tile
from bscompile.targets.kernels.vectors import pieces

UNROLL = 8  # inputs of a block that are unrolled; wider blocks loop
_SHORT = {"bias", "residual", "relu"}  # steps that run on scalable vectors


@dataclass(frozen=True)
class Vector:
    """A vector of ``lanes`` times vscale float32 elements of a run, and which of them count.

    Attributes:
        lanes: Elements where vscale is one.
        start: Its first element in the run.
        end: Elements of the run.
    """

    lanes: int
    start: Expr
    end: Expr

    @property
    def dtype(self) -> str:
        """TVM's name of its type."""
        return f"float32xvscalex{self.lanes}"

    @property
    def length(self) -> Expr:
        """Its elements."""
        return T.vscale() * self.lanes

    @property
    def predicate(self) -> Expr:
        """True in the lanes that lie in the run."""
        dtype = f"uint1xvscalex{self.lanes}"
        return T.get_active_lane_mask(dtype, T.cast(self.start, "int32"), T.cast(self.end, "int32"))

    def splat(self, value: Expr) -> Expr:
        """A scalar in every lane."""
        return T.broadcast(value, self.length)

    def load(self, buffer: Buffer, *index: Expr) -> Expr:
        """The elements from ``index`` plus the vector's start; other lanes are not read."""
        ramp = T.ramp(index[-1] + self.start, 1, self.length)
        return T.masked_load(self.dtype, buffer, *index[:-1], ramp, self.predicate)

    def store(self, buffer: Buffer, value: Expr, *index: Expr) -> None:
        """Write them; other lanes are not written."""
        ramp = T.ramp(index[-1] + self.start, 1, self.length)
        T.evaluate(T.masked_store(buffer, value, *index[:-1], ramp, self.predicate))


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    rows: int,
    lanes: int,
    tail: int,
    tasks: int,
    split: str,
    quads: bool,
) -> Any:
    """The kernel.

    Args:
        problem: The layer.
        operands: values [nnzb, bw, bh]; starts int32 [nnzb], the first input of each block;
            indptr int32 [block rows + 1]; bounds int32 [tasks + 1], the block rows of each task.
        rows: Rows of x per tile.
        lanes: Elements of a vector where vscale is one.
        tail: Elements of a fixed vector, for epilogues that are not made for scalable ones.
        tasks: Parallel tasks.
        split: What the tasks share: ``outputs`` by bounds, or ``rows``.
        quads: Whether the processor is SVE, which multiplies by any of four inputs that one
            instruction has brought into every quarter of a vector.
    """
    _, bw, bh = operands[0][1].shape
    block_rows = len(operands[2][1]) - 1
    short = set(problem.epilogue) <= _SHORT

    def nest(args: Arguments, tile_rows: int) -> None:
        tiles = T.int64(emit.tile_count(args.m, tile_rows))
        bounds = args.operands[3]

        def task(p: Expr) -> None:
            ranges = emit.ranges_of(p, tasks, split, tiles, block_rows, bounds)
            tile_range, row_range = ranges
            with emit.loop(*tile_range) as i, emit.loop(*row_range) as j, emit.opaque():
                tile(args, tile_rows, T.bind(j), T.bind(emit.tile_start(args.m, tile_rows, i)))

        emit.parallel_tasks(tasks, task)

    def tile(args: Arguments, tile_rows: int, block_row: Expr, row: Expr) -> None:
        column = T.bind(block_row * bh)
        end = T.bind(T.min(T.int64(bh), T.int64(problem.n) - column))
        held = None if short else T.sblock_alloc_buffer((tile_rows, bh), "float32")
        if held is not None:
            # TVM does not see that masked stores write to a buffer, and would allocate it only
            # where it is read; this it sees.
            T.buffer_store(held, T.float32(0), [0, 0])
        count = T.floordiv(bh + T.vscale() * lanes - 1, T.vscale() * lanes)
        with T.serial(0, count) as index, emit.opaque():
            vector = Vector(
                lanes, T.cast(index, "int64") * T.cast(T.vscale() * lanes, "int64"), end
            )
            sums = [T.sblock_alloc_buffer((1,), vector.dtype) for _ in range(tile_rows)]
            for acc in sums:
                T.buffer_store(acc, vector.splat(T.float32(0)), [0])
            accumulate(args, vector, sums, block_row, row)
            for r, acc in enumerate(sums):
                if held is None:
                    _finish(args, vector, acc[0], row + r, column)
                else:
                    vector.store(held, acc[0], T.int64(r), T.int64(0))
        if held is not None:
            _finish_fixed(args, held, tile_rows, end, row, column)

    def _finish_fixed(
        args: Arguments, held: Buffer, tile_rows: int, end: Expr, row: Expr, column: Expr
    ) -> None:
        def write(width: int) -> None:
            cut = pieces(width, tail)
            finish_tile(
                args,
                tile_rows,
                cut,
                lambda r, at, size: emit.load(held, r, at, lanes=size),
                row,
                column,
            )

        overhang = block_rows * bh - problem.n
        if not overhang:
            write(bh)
            return
        with T.If(end == bh):
            with T.Then():
                write(bh)
            with T.Else():
                write(bh - overhang)

    def accumulate(
        args: Arguments, vector: Vector, sums: list[Buffer], block_row: Expr, row: Expr
    ) -> None:
        values, starts, indptr, _ = args.operands

        def step(block: Expr, start: Expr, inner: Expr) -> None:
            weight = T.bind(vector.load(values, block, inner, T.int64(0)))
            for r, acc in enumerate(sums):
                x = vector.splat(args.x[row + r, start + inner])
                T.buffer_store(acc, acc[0] + x * weight, [0])

        def four_steps(block: Expr, start: Expr, inner: Expr) -> None:
            inputs = [
                T.bind(_quad(vector, args.x, row + r, start + inner)) for r in range(len(sums))
            ]
            for lane in range(4):
                weight = T.bind(vector.load(values, block, inner + lane, T.int64(0)))
                for x, acc in zip(inputs, sums, strict=True):
                    T.buffer_store(acc, _multiply_lane(vector, acc[0], weight, x, lane), [0])

        def steps(block: Expr, start: Expr, first: Expr, count: int) -> None:
            done = 0
            while quads and done + 4 <= count:
                four_steps(block, start, first + done)
                done += 4
            for inner in range(done, count):
                step(block, start, first + inner)

        with emit.loop(indptr[block_row], indptr[block_row + 1]) as index:
            block = T.bind(T.cast(index, "int64"))
            start = T.bind(T.cast(starts[block], "int64"))
            loops = bw // UNROLL if bw > UNROLL else 0
            if loops:
                with T.serial(0, T.int64(loops)) as group:
                    steps(block, start, group * UNROLL, UNROLL)
            steps(block, start, T.int64(loops * UNROLL), bw - loops * UNROLL)

    def body(args: Arguments) -> None:
        emit.for_rows_of(args, (rows, 4), lambda r: nest(args, r))

    return emit.generate("scalable", problem, operands, body)


def _quad(vector: Vector, x: Buffer, row: Expr, column: Expr) -> Expr:
    """SVE: x[row, column : column + 4] in every quarter of a vector (ld1rqw)."""
    everywhere = T.broadcast(T.bool(True), vector.length)
    at = T.address_of(x[row, column])
    return T.call_llvm_pure_intrin(
        "llvm.aarch64.sve.ld1rq.nxv4f32", everywhere, at, dtype=vector.dtype
    )


def _multiply_lane(vector: Vector, total: Expr, weight: Expr, x: Expr, lane: int) -> Expr:
    """SVE: the total plus weight times the input in ``lane`` of every quarter (fmla by lane)."""
    return T.call_llvm_pure_intrin(
        "llvm.aarch64.sve.fmla.lane.nxv4f32", total, weight, x, T.int32(lane), dtype=vector.dtype
    )


def _finish(args: Arguments, vector: Vector, value: Expr, row: Expr, column: Expr) -> None:
    """Run a short epilogue on one vector and store it."""
    for step, tensor in args.steps:
        if step == "bias":
            value = T.bind(value + vector.load(tensor, column))
        elif step == "residual":
            value = T.bind(value + vector.load(tensor, row, column))
        else:
            value = T.bind(T.max(vector.splat(T.float32(0)), value))
    vector.store(args.y, value, row, column)

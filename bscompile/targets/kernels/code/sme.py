"""y = x Wᵀ in float32 on Arm's SME: outer products that add up in the square array ZA.

With vectors of L floats, which the processor tells when it runs, ZA holds four squares of L x L
sums. One instruction adds the product of a column of L rows of x and a row of L outputs of W to a
square. So x is transposed, tile of rows by tile of rows, and a few lines of assembly work out one
block row for a tile: they alone run in streaming mode, where the array is, and what surrounds
them is ordinary code. Lanes beyond the tile or the block are switched off by predicates.

Nothing else of a process uses the array, so it is switched on and off without saving it for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Arguments, Buffer, Expr
from bscompile.targets.kernels.code.epilogue import finish_tile
from bscompile.targets.kernels.code.transpose import transpose_rows
from bscompile.targets.kernels.vectors import pieces

_LANES = 4  # of the vectors around the array
_FINISHED = 8  # rows whose epilogue is emitted together


def generate(
    problem: Problem,
    operands: Sequence[tuple[str, Array]],
    *,
    squares: int,
    rows: int,
    tasks: int,
    split: str,
) -> Any:
    """The kernel.

    Args:
        problem: The layer.
        operands: values [nnzb, bw, bh]; starts int32 [nnzb], the first input of each block;
            indptr int32 [block rows + 1]; bounds int32 [tasks + 1], the block rows of each task.
        squares: Squares of the array that share each row of weights, 1 to 4.
        rows: Rows of x per tile, a multiple of 4.
        tasks: Parallel tasks.
        split: What the tasks share: ``outputs`` by bounds, or ``rows``.
    """
    _, bw, bh = operands[0][1].shape
    block_rows = len(operands[2][1]) - 1
    overhang = block_rows * bh - problem.n

    def body(args: Arguments) -> None:
        with emit.opaque():
            T.sblock_attr({"pragma_import_llvm": block_row_llvm(squares)})
            tiles = T.int64(emit.tile_count(args.m, rows))
            columns = T.sblock_alloc_buffer(
                (emit.tile_count(args.m, rows), problem.k, rows), "float32"
            )
            _transposed(args, columns, rows, tiles, tasks)
            _tasks(args, columns, tiles)

    def _tasks(args: Arguments, columns: Buffer, tiles: Expr) -> None:
        bounds = args.operands[3]

        def task(p: Expr) -> None:
            ranges = emit.ranges_of(p, tasks, split, tiles, block_rows, bounds)
            tile_range, row_range = ranges
            with emit.opaque():
                sums = T.sblock_alloc_buffer((rows, bh), "float32")
                with emit.loop(*tile_range) as i, emit.loop(*row_range) as j, emit.opaque():
                    _block_row(args, columns, sums, T.bind(i), T.bind(j))

        emit.parallel_tasks(tasks, task)

    def _block_row(
        args: Arguments, columns: Buffer, sums: Buffer, tile: Expr, block_row: Expr
    ) -> None:
        values, starts, indptr, _ = args.operands
        first, last = (T.cast(indptr[block_row + i], "int64") for i in range(2))
        x = columns.access_ptr("r", offset=tile * (problem.k * rows))
        pointers = (x, values.data, starts.data, sums.data)
        lengths = (first, last, *map(T.int64, (bw, bh, rows)))
        T.evaluate(T.call_extern("int32", f"bsc_sme_{squares}", *pointers, *lengths))
        row = T.bind(tile * rows)
        column = T.bind(block_row * bh)
        count = T.min(T.int64(args.m) - row, T.int64(rows))
        if not overhang:
            _finish(args, sums, row, column, count, bh)
            return
        with T.If(block_row < block_rows - 1):
            with T.Then():
                _finish(args, sums, row, column, count, bh)
            with T.Else():
                _finish(args, sums, row, column, count, bh - overhang)

    def _finish(
        args: Arguments, sums: Buffer, row: Expr, column: Expr, count: Expr, width: int
    ) -> None:
        cut = pieces(width, _LANES)

        def some(at: Expr, several: int) -> None:
            def value(r: int, offset: int, size: int) -> Expr:
                return emit.load(sums, at + r, offset, lanes=size)

            finish_tile(args, several, cut, value, row + at, column)

        groups = T.floordiv(count, T.int64(_FINISHED))
        with T.serial(0, groups) as group, emit.opaque():
            some(T.bind(group * _FINISHED), _FINISHED)
        with T.serial(0, count - groups * _FINISHED) as rest, emit.opaque():
            some(T.bind(groups * _FINISHED + rest), 1)

    return emit.generate("sme", problem, operands, body)


def _transposed(args: Arguments, columns: Buffer, rows: int, tiles: Expr, tasks: int) -> None:
    """columns[i, c, r] = x[i rows + r, c]; rows that x does not have hold anything."""
    k = int(args.x.shape[1])

    def task(p: Expr) -> None:
        with emit.loop(*emit.share(tiles, p, tasks)) as i, emit.opaque():
            tile = T.bind(i)
            row = T.bind(tile * rows)
            whole = T.int64(args.m) - row >= rows
            with T.If(whole):
                with T.Then():
                    transpose_rows(args.x, row, rows, _LANES, columns, tile)
                with T.Else(), T.serial(0, T.int64(args.m) - row) as r, T.serial(0, k) as c:
                    T.buffer_store(columns, args.x[row + r, c], [tile, c, r])

    emit.parallel_tasks(tasks, task)


def block_row_llvm(squares: int) -> str:
    """bsc_sme_<squares>(x, values, starts, sums, first, last, bw, bh, rows) in LLVM IR.

    sums[r, o] = Σ over blocks b from first to last, over i < bw, of x[starts[b] + i, r]
    values[b, i, o] with x [inputs, rows], values [blocks, bw, bh], sums [rows, bh].

    It is assembly, because TVM inlines imported functions and forgets that one is to run in
    streaming mode. x0 to x8 hold the arguments in their order.
    """
    each = range(squares)
    text = f"""
        smstart
        cntw x9                             // length of a vector, and side of a square
        mov x10, #0                         // the first output
    1:  whilelt p0.s, x10, x7
        mov x11, #0                         // the first row
    2:  zero {{za}}
        mov x16, x11
        {_times(each, "whilelt p@1.s, x16, x8; add x16, x16, x9")}
        mov x13, x4                         // the block, its weights
        mul x14, x4, x6
        mul x14, x14, x7
        add x14, x14, x10
        add x14, x1, x14, lsl #2
    3:  cmp x13, x5
        b.ge 5f
        ldrsw x15, [x2, x13, lsl #2]        // its inputs
        mul x15, x15, x8
        add x15, x15, x11
        add x15, x0, x15, lsl #2
        mov x17, x6
    4:  ld1w {{z0.s}}, p0/z, [x14]
        {_times(each, "ld1w {z@1.s}, p@1/z, [x15, #@0, mul vl]")}
        {_times(each, "fmopa za@0.s, p@1/m, p0/m, z@1.s, z0.s")}
        add x14, x14, x7, lsl #2
        add x15, x15, x8, lsl #2
        subs x17, x17, #1
        b.ne 4b
        add x13, x13, #1
        b 3b
    5:  mul x16, x11, x7                    // where the sums go
        add x16, x16, x10
        add x16, x3, x16, lsl #2
        mul x17, x9, x7
        mov x13, x11
        mov w12, #0
    6:  mov x14, x16
        mov x15, x13
        {_times(each, _STORE)}
    7:  add x16, x16, x7, lsl #2
        add x13, x13, #1
        add w12, w12, #1
        cmp x12, x9
        b.lt 6b
        {_times(each, "add x11, x11, x9")}
        cmp x11, x8
        b.lt 2b
        add x10, x10, x9
        cmp x10, x7
        b.lt 1b
        smstop"""
    lines = (line.partition("//")[0].strip() for line in text.splitlines())
    code = "\\0A".join(line for line in lines if line)
    pointers = ", ".join(f"ptr %x{i}" for i in range(4))
    lengths = ", ".join(f"i64 %x{i}" for i in range(4, 9))
    taken = [f"{{x{i}}}" for i in range(9)]
    spoilt = [f"x{i}" for i in range(9, 18)]
    spoilt += [*(f"z{i}" for i in range(32)), *(f"p{i}" for i in range(16)), "cc", "memory"]
    constraints = ",".join([*taken, *(f"~{{{name}}}" for name in spoilt)])
    return f"""
define weak i32 @bsc_sme_{squares}({pointers}, {lengths}) {{
  call void asm sideeffect "{code}", "{constraints}"({pointers}, {lengths})
  ret i32 0
}}
"""


_STORE = (
    "cmp x15, x8; b.ge 7f; st1w {za@0h.s[w12, 0]}, p0, [x14]; "
    "add x15, x15, x9; add x14, x14, x17, lsl #2"
)


def _times(each: Iterable[int], text: str) -> str:
    """The instructions for every square: @0 is its number, @1 the one after that."""
    lines = [text.replace("@0", str(u)).replace("@1", str(u + 1)) for u in each]
    return "\n".join(lines).replace("; ", "\n")

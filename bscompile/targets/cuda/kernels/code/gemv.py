"""Few rows of x: bound by reading W once, so every lane reads 16 bytes of it and none is staged.

``step / lanes`` lanes share one output of a step, a warp so many outputs as it has such groups;
``split`` warps of a thread block take steps in turn and add up in shared memory. Each lane keeps
one sum for each of ``rows`` rows of x, which stay in the nearest cache. 8-bit numbers are
multiplied four at a time, by dp4a.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.dialect.precision import itemsize
from bscompile.targets.base import Problem
from bscompile.targets.cuda.kernels.code.signature import (
    Arguments,
    Operands,
    generate,
    lies_plain,
    tiles,
)
from bscompile.targets.cuda.kernels.packing import Layout

_WARP = 32
_C_TYPES = {
    "float32": "float",
    "float16": "half",
    "bfloat16": "nv_bfloat16",
    "int8": "signed char",
    "uint8": "unsigned char",
}


def kernel(
    problem: Problem, operands: Operands, layout: Layout, multiplied: str, *, rows: int, split: int
) -> Any:
    """The PrimFunc.

    Args:
        problem: The layer.
        operands: As packing.pack_steps makes them.
        layout: How they were cut.
        multiplied: dtype of the values; products and sums are float32, or int32 of int8.
        rows: Rows of x that a thread block takes together.
        split: Warps that share one tile row's steps.
    """
    vector = layout.unit(problem.k)
    lanes = min(_WARP, layout.step // vector)
    return generate(
        "few_rows",
        problem,
        problem.x_dtype,
        operands,
        lambda args: _body(args, problem, layout, multiplied, rows, split, lanes, vector),
    )


def _body(
    args: Arguments,
    problem: Problem,
    layout: Layout,
    multiplied: str,
    rows: int,
    split: int,
    lanes: int,
    vector: int,
) -> None:
    values, starts, indptr, order = args.operands[:4]
    summed = "float32" if args.integers is None else "int32"
    outputs = _WARP // lanes  # of one warp
    parts = layout.rows // outputs
    tile_rows = -(-problem.n // layout.rows)
    name, source = _dot(str(args.x.dtype), multiplied, vector)
    with (
        T.thread_binding(0, tile_rows * parts, "blockIdx.x") as block,
        T.thread_binding(0, tiles(args.m, rows), "blockIdx.y") as tile,
        T.thread_binding(0, split, "threadIdx.y") as warp,
        T.thread_binding(0, _WARP, "threadIdx.x") as lane,
        T.sblock("few_rows"),
    ):
        T.reads()
        T.writes()
        sums = T.sblock_alloc_buffer((rows,), summed, scope="local")
        shared = T.sblock_alloc_buffer((split, rows, outputs), summed, scope="shared")
        packed_row = T.bind(T.floordiv(block, parts))
        mine = T.bind(T.floordiv(lane, lanes))
        out = T.bind(T.floormod(block, parts) * outputs + mine)
        column = T.bind(order[packed_row] * layout.rows + out)
        first = T.bind(indptr[packed_row])
        count = T.bind(indptr[packed_row + 1] - first)
        own_row = T.bind(T.min(column, problem.n - 1))  # of a W that lies as it is
        with T.unroll(rows) as r:
            T.buffer_store(sums, T.cast(T.int32(0), summed), [r])
        with T.serial(0, T.floordiv(count - warp + (split - 1), split)) as turn:
            step = T.bind(first + turn * split + warp)
            for piece in range(layout.step // (lanes * vector)):
                c = T.bind((piece * lanes + T.floormod(lane, lanes)) * vector)
                place = T.bind(
                    starts[step, T.floordiv(c, layout.group)] * vector + T.floormod(c, layout.group)
                )
                number = (
                    values[own_row, (step - first) * layout.step + c]
                    if lies_plain(values)
                    else values[step, out, c]
                )
                with T.unroll(rows) as r:
                    T.evaluate(
                        T.cuda.func_call(
                            name,
                            T.address_of(sums[r]),
                            T.address_of(number),
                            T.address_of(args.x[_row(args.m, tile, rows, r), place]),
                            source_code=source,
                        )
                    )
        with T.unroll(rows) as r:
            for shift in range(lanes.bit_length() - 1):
                other = T.tvm_warp_shuffle_xor(
                    T.tvm_warp_activemask(), sums[r], 1 << shift, _WARP, _WARP
                )
                T.buffer_store(sums, sums[r] + other, [r])
        if split > 1:
            with T.If(T.floormod(lane, lanes) == 0), T.Then(), T.unroll(rows) as r:
                T.buffer_store(shared, sums[r], [warp, r, mine])
            T.evaluate(T.tvm_storage_sync("shared"))
        with T.If(T.And(warp == 0, T.floormod(lane, lanes) == 0)), T.Then(), T.unroll(rows) as r:
            total = sums[r]
            if split > 1:
                total = shared[0, r, mine]
                for w in range(1, split):
                    total = total + shared[w, r, mine]
            row = T.cast(tile, "int64") * rows + r
            with T.If(T.And(row < args.m, column < problem.n)), T.Then():
                T.buffer_store(args.y, args.finish(total, row, column), [row, column])


def _row(m: Any, tile: Any, rows: int, row: Any) -> Any:
    last = T.int64(m - 1) if isinstance(m, int) else m - 1
    return T.min(T.cast(tile, "int64") * rows + row, last)


def _dot(x_dtype: str, w_dtype: str, vector: int) -> tuple[str, str]:
    """A CUDA function that adds ``vector`` products to a sum, with one load of each side."""
    name = f"bscompile_dot_{x_dtype}_{w_dtype}_{vector}"
    summed = "int" if w_dtype == "int8" else "float"

    def load(to: str, at: str, dtype: str) -> str:
        kind = f"struct alignas({min(16, itemsize(dtype) * vector)})"
        return f"{kind} {{ {_C_TYPES[dtype]} at[{vector}]; }} {to} = *(decltype({to})*){at};"

    if w_dtype == "int8" and vector % 4 == 0:
        sign = "u32" if x_dtype == "uint8" else "s32"
        body = f"""for (int i = 0; i < {vector // 4}; i++)
    asm("dp4a.{sign}.s32 %0, %1, %2, %3;"
        : "=r"(*sum) : "r"(((const int*)xs.at)[i]), "r"(((const int*)ws.at)[i]), "r"(*sum));"""
    elif w_dtype == "int8":
        body = f"for (int i = 0; i < {vector}; i++) *sum += (int)ws.at[i] * (int)xs.at[i];"
    else:
        body = f"""for (int i = 0; i < {vector}; i++)
    *sum = fmaf((float)ws.at[i], (float)xs.at[i], *sum);"""
    return (
        name,
        f"""
__forceinline__ __device__ void {name}({summed}* sum, const void* w, const void* x) {{
  {load("ws", "w", w_dtype)}
  {load("xs", "x", x_dtype)}
  #pragma unroll
  {body}
}}
""",
    )

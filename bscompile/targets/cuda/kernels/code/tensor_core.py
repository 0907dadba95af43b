"""The schedule of packed steps on tensor cores: cp.async ring, ldmatrix, mma.

A thread block of ``warps_m x warps_n`` warps owns one tile of y. A ring of ``stages`` buffers in
shared memory is filled by asynchronous copies while earlier steps are multiplied; fragments go
to registers by ldmatrix. 16-bit operands take mma.m16n8k16 with sums in float32, tf32 ones
mma.m16n8k8, 8-bit ones mma.m16n8k32 with sums in int32. sm_80 and newer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.s_tir import Schedule

from bscompile.dialect.precision import itemsize, stored_dtype
from bscompile.targets.base import Problem
from bscompile.targets.cuda.kernels.code import tf32
from bscompile.targets.cuda.kernels.code.gather import definition
from bscompile.targets.cuda.kernels.code.intrinsics import cuda_intrinsics, mma_names
from bscompile.targets.cuda.kernels.code.signature import Operands
from bscompile.targets.cuda.kernels.packing import Layout

_FRAGMENT = 16  # rows and outputs of what is multiplied at once
_DEPTH_BYTES = 32  # of the inputs of that
_PAD_BYTES = 16  # after each row in shared memory: ldmatrix then meets no bank twice


def kernel(
    problem: Problem,
    operands: Operands,
    layout: Layout,
    multiplied: str,
    *,
    rows: int,
    warps_m: int,
    warps_n: int,
    stages: int,
) -> Any:
    """The scheduled PrimFunc.

    Args:
        problem: The layer.
        operands: As packing.pack_layer or packing.pack_coefficients makes them.
        layout: How they were cut; ``layout.rows`` is a multiple of ``16 * warps_n``.
        multiplied: ``float16``, ``bfloat16``, ``tf32`` or ``int8``.
        rows: Rows of x in a tile; a multiple of ``16 * warps_m``.
        warps_m: Warps side by side along the rows.
        warps_n: And along the outputs.
        stages: Buffers of the ring, at least 2.
    """
    func = definition(problem, operands, layout, rows, stored_dtype(multiplied).name)
    sch = Schedule(tvm.IRModule({"main": func}))
    x_dtype = "uint8" if problem.x_dtype == "float32" else problem.x_dtype
    names = mma_names(x_dtype if multiplied == "int8" else multiplied, multiplied)
    warps, size = warps_m * warps_n, itemsize(multiplied)
    deep = _DEPTH_BYTES // size
    row, tile = sch.get_loops(sch.get_sblock("outer"))
    sch.bind(row, "blockIdx.y")
    sch.bind(tile, "blockIdx.x")
    inner = sch.get_sblock("C")
    product = _cut_product(sch, inner, deep, warps_m, warps_n)

    copy, widest = layout.unit(problem.k), 16 // size if problem.form != "kronecker" else 1
    for name, vector, side in (("XG", copy, rows), ("WG", widest, layout.rows)):
        block = _into_ring(sch, name, product.step, deep, _PAD_BYTES // size)
        _spread(sch, block, warps, vector, side * layout.step)

    loads = []  # fragments into registers
    for number in (0, 1):
        block = sch.cache_read(product.fragment, number, "warp")
        sch.compute_at(block, product.depth)
        loads.append((block, _fragments(sch, block, deep)))
    # The sums leave through shared memory; straight from registers they would spill.
    sch.set_scope(inner, 0, "shared.dyn")
    store = sch.cache_write(product.fragment, 0, "warp")
    sch.reverse_compute_at(store, product.warp)
    sch.storage_align(store, 0, axis=-2, factor=16, offset=4)
    vector = _store_vector(problem, layout, rows)
    _spread(sch, sch.get_sblock("Y"), warps, vector, rows * layout.rows)
    stored = _fragments(sch, store, _FRAGMENT)
    sch.decompose_reduction(product.fragment, product.step)

    for (block, _), operand in zip(loads, "xw", strict=True):
        _to_lanes(sch, block, "write", deep, operand)
    _to_lanes(sch, store, "read", _FRAGMENT)
    for loop, key in (
        (loads[0][1], "load_a"),
        (loads[1][1], "load_b"),
        (sch.get_loops(inner)[-3], "compute"),
        (sch.get_loops(sch.get_sblock("C_init"))[-2], "init"),
        (stored, "store"),
    ):
        sch.tensorize(loop, names[key])
    sch.unroll(product.depth)
    if copy * size >= 4:  # cp.async moves no less
        _overlap(sch, product.step, stages)
    return sch.mod["main"]


def _into_ring(sch: Schedule, name: str, step: Any, deep: int, pad: int) -> Any:
    """The block that gathers x or W, writing a step's share to shared memory."""
    block = sch.get_sblock(name)
    sch.set_scope(block, 0, "shared.dyn")
    sch.compute_at(block, step)
    sch.storage_align(block, 0, axis=-2, factor=deep, offset=pad)
    return block


def _overlap(sch: Schedule, step: Any, stages: int) -> None:
    """Copies of later steps go on while one is multiplied."""
    sch.annotate(step, "software_pipeline_stage", [0, 0, stages - 1])
    sch.annotate(step, "software_pipeline_order", [0, 1, 2])
    sch.annotate(step, "software_pipeline_async_stages", [0])


@dataclass(frozen=True)
class _Product:
    """Where others are put: the block of one fragment's product, and the loops around it.

    Attributes:
        fragment: The block.
        warp: The loop over warps.
        step: The loop over steps, inside.
        depth: The loop over a step's fragments, inside.
    """

    fragment: Any
    warp: Any
    step: Any
    depth: Any


def _cut_product(sch: Schedule, inner: Any, deep: int, warps_m: int, warps_n: int) -> _Product:
    """The product as fragments: each warp has its own, along i and n, and walks the steps."""
    i, n, step, c = sch.get_loops(inner)
    (i_out, i_in), (n_out, n_in), (c_out, c_in) = (
        sch.split(v, [None, side]) for v, side in ((i, _FRAGMENT), (n, _FRAGMENT), (c, deep))
    )
    sch.reorder(i_out, n_out, step, c_out, i_in, n_in, c_in)
    fragment = sch.blockize(i_in)
    i_warp, i_own = sch.split(i_out, [warps_m, None])
    n_warp, n_own = sch.split(n_out, [warps_n, None])
    sch.reorder(i_warp, n_warp, step, c_out, i_own, n_own)
    warp = sch.fuse(i_warp, n_warp)
    sch.bind(warp, "threadIdx.y")
    return _Product(fragment, warp, step, c_out)


def _store_vector(problem: Problem, layout: Layout, rows: int) -> int:
    """Outputs that one thread stores at once; a tile that may be cut is stored one by one."""
    whole = problem.n % layout.rows == 0 and problem.m is not None and problem.m % rows == 0
    return 4 if whole else 1


def _spread(sch: Schedule, block: Any, warps: int, vector: int, elements: int) -> None:
    """A two-dimensional copy over warps x 32 lanes x ``vector`` neighbours."""
    flat = sch.fuse(*sch.get_loops(block)[-2:])
    while elements % (32 * vector):
        vector //= 2
    height = warps
    while elements // (32 * vector) % height:
        height -= 1
    again, y, x, lanes = sch.split(flat, [None, height, 32, vector])
    sch.bind(y, "threadIdx.y")
    sch.bind(x, "threadIdx.x")
    if vector > 1:
        sch.vectorize(lanes)
    sch.unroll(again)


def _fragments(sch: Schedule, block: Any, deep: int) -> Any:
    """Cut the last two loops into fragments of 16 x ``deep``; the loop that begins one."""
    a, b = sch.get_loops(block)[-2:]
    (a_out, a_in), (b_out, b_in) = sch.split(a, [None, _FRAGMENT]), sch.split(b, [None, deep])
    sch.reorder(a_out, b_out, a_in, b_in)
    return a_in


def _to_lanes(sch: Schedule, block: Any, buffer: str, deep: int, side: str = "") -> None:
    """A fragment becomes 32 lanes x their values, as ldmatrix gives and mma takes them.

    ``side`` is x or w, whose buffers count the steps first; empty for the sums.
    """
    lane_of = _lanes(deep, side)

    def place(a: Any, b: Any) -> list[Any]:
        return [a // _FRAGMENT, b // deep, *lane_of(a % _FRAGMENT, b % deep)]

    index = (lambda z, a, b: [z, *place(a, b)]) if side else place
    sch.transform_layout(block, (buffer, 0), index)


def _lanes(deep: int, side: str) -> Callable[[Any, Any], Any]:
    """Where an element of a fragment of 16 x ``deep`` is: lane, and which of its values."""
    if deep < _FRAGMENT:
        return tf32.place_of_x if side == "x" else tf32.place_of_w
    layouts = cuda_intrinsics()
    found: Callable[[Any, Any], Any] = (
        layouts.shared_16x16_to_ldmatrix_32x8_layout
        if deep == _FRAGMENT
        else layouts.shared_16x32_to_ldmatrix_32x16_layout
    )
    return found

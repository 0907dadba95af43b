"""The tensor intrinsics of tf32, which TVM's have no variant for.

A fragment is 16 x 8 float32 numbers. ldmatrix moves 8 x 8 matrices of 16-bit numbers, which are
8 x 4 of 32 bits: lane l receives the one at (l / 4, l % 4) of each. Those are the places that
mma.m16n8k8 wants (g = l / 4, t = l % 4): of x [16 rows, 8 inputs] a0 (g, t), a1 (g + 8, t),
a2 (g, t + 4), a3 (g + 8, t + 4); of W [16 outputs, 8 inputs] b0 (g, t), b1 (g, t + 4) for the first
eight outputs, then the same for the others. The sums lie as those of 16-bit operands.

Both come rounded: the cores do not read the 13 low bits of an operand, and cutting off what is
there would lose twice as much, always towards zero.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.s_tir import TensorIntrin

_HEAD = """
@T.prim_func(s_tir=True)
def intrinsic({parameters}):
    with T.sblock("root"):
"""
_SIDE = 'T.Buffer((32, 4), "float32", scope="warp", offset_factor=8)'
_LOADED = (
    f'warp: {_SIDE}, shared: T.Buffer((16, 8), "float32", {{}}scope="shared.dyn", offset_factor=8)'
)
_LOAD = (
    _HEAD
    + """
        T.reads(shared[0:16, 0:8])
        T.writes(warp[0:32, 0:4])
"""
)
_LOAD_MEANS = (
    _LOAD.format(parameters=_LOADED.format(""))
    + """
        for i, c in T.grid(16, 8):
            with T.sblock("shared_warp"):
                vi, vc = T.axis.remap("SS", [i, c])
                T.reads(shared[vi, vc])
                lane, which = T.meta_var(place(vi, vc))
                T.writes(warp[lane, which])
                warp[lane, which] = shared[vi, vc]
"""
)
_LOAD_IS = (
    _LOAD.format(parameters=_LOADED.format('strides=("s0", "s1"), '))
    + """
        for tx in T.thread_binding(32, thread="threadIdx.x"):
            row, part = T.meta_var(line(tx))
            T.ptx_legacy.ldmatrix(
                T.bool(False), 4, ".b16", warp.data, warp.elem_offset + 4 * tx,
                T.tvm_access_ptr(T.type_annotation("float32"), shared.data, shared.elem_offset,
                                 shared.strides[0] * 16, 1),
                shared.strides[0] * row + 4 * part)
"""
)
_SUMS = 'T.Buffer((32, 8), "float32", scope="warp", offset_factor=16)'
_PRODUCT = (
    _HEAD.format(parameters=f"A: {_SIDE}, B: {_SIDE}, C: {_SUMS}")
    + """
        T.reads(C[0:32, 0:8], A[0:32, 0:4], B[0:32, 0:4])
        T.writes(C[0:32, 0:8])
"""
)
_PRODUCT_MEANS = (
    _PRODUCT
    + """
        for i, j, k in T.grid(16, 16, 8):
            with T.sblock("C"):
                vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                lane_a, a = T.meta_var(of_x(vi, vk))
                lane_b, b = T.meta_var(of_w(vj, vk))
                lane_c, c = T.meta_var(of_sums(vi, vj))
                T.reads(C[lane_c, c], A[lane_a, a], B[lane_b, b])
                T.writes(C[lane_c, c])
                C[lane_c, c] = C[lane_c, c] + A[lane_a, a] * B[lane_b, b]
"""
)
_PRODUCT_IS = (
    _PRODUCT
    + """
        for tx in T.thread_binding(32, thread="threadIdx.x"):
            T.ptx_legacy.mma(
                "m16n8k8", "row", "col", "tf32", "tf32", "fp32", A.data, A.elem_offset + tx * 4,
                B.data, B.elem_offset + tx * 4, C.data, C.elem_offset + tx * 8, T.bool(False))
            T.ptx_legacy.mma(
                "m16n8k8", "row", "col", "tf32", "tf32", "fp32", A.data, A.elem_offset + tx * 4,
                B.data, B.elem_offset + tx * 4 + 2, C.data, C.elem_offset + tx * 8 + 4,
                T.bool(False))
"""
)


def place_of_x(row: Any, column: Any) -> tuple[Any, Any]:
    """(lane, which of its four) of an element of x's fragment."""
    return 4 * (row % 8) + column % 4, column // 4 * 2 + row // 8


def place_of_w(output: Any, column: Any) -> tuple[Any, Any]:
    """(lane, which of its four) of an element of W's fragment."""
    return 4 * (output % 8) + column % 4, output // 8 * 2 + column // 4


def _place_of_sum(row: Any, output: Any) -> tuple[Any, Any]:
    return 4 * (row % 8) + output % 8 // 2, 4 * (output // 8) + row // 8 * 2 + output % 2


@cache
def register() -> dict[str, str]:
    """Role -> name of the intrinsic: load_a, load_b, compute."""
    load_x = _parsed(_LOAD_IS, line=lambda tx: (tx % 16, tx // 16))
    load_w = _parsed(_LOAD_IS, line=lambda tx: (8 * (tx // 16) + tx % 8, tx % 16 // 8))
    places = {"of_x": place_of_x, "of_w": place_of_w, "of_sums": _place_of_sum}
    names = {}
    for role, means, does in (
        ("load_a", _parsed(_LOAD_MEANS, place=place_of_x), load_x),
        ("load_b", _parsed(_LOAD_MEANS, place=place_of_w), load_w),
        ("compute", _parsed(_PRODUCT_MEANS, **places), _parsed(_PRODUCT_IS)),
    ):
        names[role] = f"bscompile_tf32_{role}"
        TensorIntrin.register(names[role], means, does, override=True)
    return names


def _parsed(text: str, **names: Any) -> Any:
    """The PrimFunc of a text that uses these names."""
    from tvm.script import tirx

    return tvm.script.from_source(text, extra_vars={"T": tirx, "tvm": tvm, **names})

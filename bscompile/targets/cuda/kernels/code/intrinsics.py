"""TVM's tensor intrinsics for ldmatrix and mma: imported in seconds, and made for bfloat16 too."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

import tvm
from tvm.s_tir import TensorIntrin


@contextmanager
def _short_stacks() -> Iterator[None]:
    """``inspect.stack`` without source lines.

    TVM parses its hundreds of intrinsics when they are imported, and each asks for the whole
    stack. Looking up the source of every frame takes most of a minute; nobody reads it.
    """

    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        frame: FrameType | None = sys._getframe(1)
        frames = []
        while frame is not None:
            code = frame.f_code
            frames.append(
                inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None)
            )
            frame = frame.f_back
        return frames

    whole = inspect.stack
    inspect.stack = stack
    try:
        yield
    finally:
        inspect.stack = whole


@cache
def cuda_intrinsics() -> Any:
    """The module tvm.s_tir.tensor_intrin.cuda."""
    with _short_stacks():
        return importlib.import_module("tvm.s_tir.tensor_intrin.cuda")


@cache
def mma_names(x_dtype: str, dtype: str) -> dict[str, str]:
    """Role -> name of the intrinsic: load_a, load_b, compute, init, store.

    TVM registers those of float16, and int8 for other scopes. bfloat16's are float16's with
    another type name; x in uint8 is read like int8. Those of tf32 are in tf32.py.
    """
    made = cuda_intrinsics()
    if dtype == "int8":
        return _int8_names(made, x_dtype)
    names: dict[str, str] = dict(
        made.get_mma_intrin_group(
            "shared.dyn", "shared.dyn", "float16", "float32", False, True, True
        )
    )
    if dtype == "tf32":
        from bscompile.targets.cuda.kernels.code import tf32

        names.update(tf32.register())  # its sums are set and leave as float16's
    elif dtype == "bfloat16":
        for role in ("load_a", "load_b", "compute"):
            half = TensorIntrin.get(names[role])
            names[role] = f"bscompile_bf16_{names[role]}"
            parts = (_with(func, ("float16", "bfloat16"), ('"fp16"', '"bf16"'))
                     for func in (half.desc, half.impl))  # fmt: skip
            TensorIntrin.register(names[role], *parts, override=True)
    return names


def _int8_names(made: Any, x_dtype: str) -> dict[str, str]:
    load_a, load_b = (
        made.get_ldmatrix_intrin(32, "int8", side, side == "B", "shared.dyn") for side in "AB"
    )
    compute = made.get_mma_intrin(32, "int8", "int8", "int32", False, True)
    if x_dtype == "uint8":
        load_a = tuple(_with(func, ('"int8"', '"uint8"')) for func in load_a)
        first = ('A: T.Buffer((32, 16), "int8"', 'A: T.Buffer((32, 16), "uint8"')
        operands = ('"int8", "int8", "int32"', '"uint8", "int8", "int32"')
        compute = tuple(_with(func, first, operands) for func in compute)
    parts = {
        "load_a": load_a,
        "load_b": load_b,
        "compute": compute,
        "init": made.get_mma_fill_intrin("int32", 8),
        "store": made.get_mma_store_intrin("int32", 8, "shared.dyn", False),
    }
    names = {role: f"bscompile_{x_dtype}_{role}" for role in parts}
    for role, functions in parts.items():
        TensorIntrin.register(names[role], *functions, override=True)
    return names


def _with(func: Any, *changes: tuple[str, str]) -> Any:
    """The function with pieces of its text changed."""
    text = func.script()
    for old, new in changes:
        text = text.replace(old, new)
    return tvm.script.from_source(text)

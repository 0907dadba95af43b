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
def mma_names(dtype: str) -> dict[str, str]:
    """Role -> name of the intrinsic: load_a, load_b, compute, init, store.

    TVM registers those of float16; bfloat16's are the same with another type name.
    """
    names: dict[str, str] = dict(
        cuda_intrinsics().get_mma_intrin_group(
            "shared.dyn", "shared.dyn", "float16", "float32", False, True, True
        )
    )
    if dtype == "bfloat16":
        for role in ("load_a", "load_b", "compute"):
            half = TensorIntrin.get(names[role])
            names[role] = f"bscompile_bf16_{names[role]}"
            meaning, code = (_as_bfloat16(func) for func in (half.desc, half.impl))
            TensorIntrin.register(names[role], meaning, code, override=True)
    return names


def _as_bfloat16(func: Any) -> Any:
    text = func.script().replace("float16", "bfloat16").replace('"fp16"', '"bf16"')
    return tvm.script.from_source(text)

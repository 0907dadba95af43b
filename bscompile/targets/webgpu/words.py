"""Integers and truth values as shaders hold them: WGSL has no other number than of 32 bits.

int64 becomes int32, and so does bool, which cannot lie in memory that shaders share. Lengths and
indices fit in any case; what a user gives is checked by the loaders.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import tirx

from bscompile.artifact.program import Buffer, Program, Storage
from bscompile.errors import ModelError

Array = npt.NDArray[Any]

#: dtype of the model -> how it lies in memory.
WORDS: Final = {"int64": "int32", "bool": "int32"}
#: What WGSL can hold there; half precision only where the artifact asks for it.
HELD: Final = ("float32", "float16", "int32", "uint32")

_INT32 = tvm.ir.PrimType("int32")


def word(place: str, dtype: str) -> str:
    """How numbers of a dtype lie in memory.

    Raises:
        ModelError: not at all.
    """
    held = WORDS.get(dtype, dtype)
    if held not in HELD:
        raise ModelError(
            f"{place}: WebGPU has no {dtype}", hint="build for another target, such as opencl"
        )
    return held


def narrowed(name: str, array: Array) -> Array:
    """A weight as it lies in memory.

    Raises:
        ModelError: WebGPU has no such numbers, or one needs more than 32 bits.
    """
    held = np.dtype(word(f"weight {name}", array.dtype.name))
    if held == array.dtype:
        return array
    result = array.astype(held)
    if not np.array_equal(result, array):
        raise ModelError(f"weight {name}: a number needs 64 bits, WebGPU has 32")
    return result


def fit_program(program: Program) -> Program:
    """The program with windows and storages of the sizes that numbers have in memory."""
    buffers = tuple(
        replace(buffer, dtype=word(f"buffer {i} of the program", buffer.dtype))
        for i, buffer in enumerate(program.buffers)
    )
    storages = tuple(
        _fitting(storage, [b for b in buffers if b.storage == i])
        for i, storage in enumerate(program.storages)
    )
    return replace(program, storages=storages, buffers=buffers)


def _fitting(storage: Storage, windows: list[Buffer]) -> Storage:
    """A storage that its windows fill."""
    return replace(storage, bytes=max((b.offset + b.bytes for b in windows), default=0))


def fit_kernel(func: Any) -> Any:
    """A scheduled tirx.PrimFunc whose buffers hold words, and whose integers have 32 bits."""
    func = tvm_ffi.structural_mutate(
        func,
        (
            (tvm.ir.PrimType, _type),
            (tvm.ir.TensorLoad, _load),
            (tirx.BufferStore, _store),
            (tirx.Cast, _cast),
        ),
    )
    name = str(func.attrs["global_symbol"])
    narrow = tirx.transform.ForceNarrowIndexToInt32()
    return narrow(tvm.IRModule({name: func}))[name]


def _type(ty: Any, _: Any) -> Any:
    """Of a buffer: the types of expressions follow from their parts."""
    return _INT32 if str(ty.dtype) in WORDS else ty


def _load(load: Any, mutator: Any) -> Any:
    new = mutator.default_mutate(load)
    return new != tirx.IntImm("int32", 0) if str(load.ty.dtype) == "bool" else new


def _store(store: Any, mutator: Any) -> Any:
    new = mutator.default_mutate(store)
    if str(store.buffer.dtype) != "bool":
        return new  # the pass that narrows integers minds these
    return tirx.BufferStore(new.buffer, tirx.Cast("int32", new.value), list(new.indices))


def _cast(cast: Any, mutator: Any) -> Any:
    new = mutator.default_mutate(cast)
    return tirx.Cast("int32", new.value) if str(new.ty.dtype) == "int64" else new

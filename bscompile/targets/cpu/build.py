"""From a lowered module to one shared library, as bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bscompile.errors import ModelError, StorageError, TargetError

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec, TargetContext
    from bscompile.targets.lowering import Lowered

#: The artifact member that holds the code.
LIBRARY = "code/model.so"

_ROOM = 32 << 20  # more than the code of any model takes; weights are not part of it


def build(lowered: Lowered, context: TargetContext) -> dict[str, bytes]:
    """Compile for the context's CPU and link.

    Args:
        lowered: The model as one Relax module.
        context: What it was lowered for.

    Returns:
        ``{"code/model.so": ...}``: a shared library that the Relax virtual machine runs.

    Raises:
        TargetError: no C++ compiler is installed, or it fails.
        StorageError: there is no room for temporary files.
    """
    linker = find_linker()
    executable = compile_module(lowered.module, context)
    with _temporary_folder() as folder:
        path = Path(folder) / "model.so"
        try:
            executable.export_library(str(path), cc=linker, workspace_dir=folder)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1:]
            raise TargetError(
                f"{linker} could not link the model's code: {''.join(last)}"
            ) from error
        return {LIBRARY: path.read_bytes()}


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder with room for object code: LLVM ends the process where it finds none.

    Raises:
        StorageError: the disk is full, or may not be written.
    """
    place = None
    try:
        place = tempfile.gettempdir()
        with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
            with open(Path(folder) / "room", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, _ROOM)
            os.unlink(file.name)
            yield folder
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(
            f"{place or 'temporary files'}: object code cannot be written, {reason}",
            f"free {_ROOM >> 20} MB there, or name another folder in TMPDIR",
        ) from error


def compile_module(module: Any, context: TargetContext) -> Any:
    """Run the whole pass order and the code generator; a tvm.relax.VMExecutable.

    Raises:
        ModelError: TVM cannot generate code for an operation of the model.
    """
    import tvm

    from bscompile.targets.cpu.hardware import llvm_target
    from bscompile.targets.cpu.pipeline import PASS_CONFIG, passes
    from bscompile.targets.tir_passes import TIR_PIPELINE

    target = llvm_target(context.hardware)
    try:
        with target, tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
            for step in passes(context.hardware):
                module = step(module)
            return tvm.relax.build(module, target, relax_pipeline=None, tir_pipeline=TIR_PIPELINE)
    except tvm.error.InternalError as error:  # how TVM says that it cannot
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"no code for {context.target.name} can be generated from this model: "
            f"{lines[0] if lines else type(error).__name__}"
        ) from error


def compile_kernel(prim_func: Any, hardware: HardwareSpec) -> Any:
    """Compile one kernel alone, named ``kernel``, as it would be inside a model."""
    import tvm

    from bscompile.targets.cpu.hardware import llvm_target
    from bscompile.targets.cpu.pipeline import PASS_CONFIG
    from bscompile.targets.tir_passes import TIR_PIPELINE

    module = tvm.IRModule({"kernel": prim_func.with_attr("global_symbol", "kernel")})
    with tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
        return tvm.compile(module, target=llvm_target(hardware), tir_pipeline=TIR_PIPELINE)


def find_linker() -> str:
    """The C++ compiler that links shared libraries.

    Raises:
        TargetError: there is none.
    """
    named = [os.environ.get("CXX"), os.environ.get("CC")]
    for name in [*named, "g++", "gcc", "clang++", "clang", "c++"]:
        if name and shutil.which(name):
            return name
    raise TargetError(
        "building for cpu needs a C++ compiler to link, and none was found",
        "install g++ or clang++, or name one in the environment variable CXX",
    )

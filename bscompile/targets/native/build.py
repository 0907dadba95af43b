"""From a program and its kernels to an executable and an object to link with, as bytes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from bscompile.artifact.program import MEMBER, Program, weights_image
from bscompile.errors import ModelError, TargetError
from bscompile.targets.native.machines import Machine, find_zig
from bscompile.targets.native.tables import tables

Array = npt.NDArray[Any]

#: The artifact members: a program that serves standard input and output; the same without its
#: function main, to be linked with other code; and what that other code includes.
EXECUTABLE: Final = "code/model"
OBJECT: Final = "code/model.o"
HEADER: Final = "code/bscompile_model.h"

_SOURCES = Path(__file__).parent / "c"


def build_static(
    program: Program,
    kernels: Mapping[str, Any],
    params: Sequence[Array],
    machine: Machine,
    target: Any,
    threads: int,
    vector_bytes: int = 0,
) -> dict[str, bytes]:
    """Compile and link a whole model.

    Args:
        program: The model.
        kernels: Name -> tvm.tirx.PrimFunc, one for every kernel of its steps.
        params: The weights in the order of its storages.
        machine: What it will run on.
        target: The tvm.target.Target of the kernels' code.
        threads: Worker threads to use unless told otherwise.
        vector_bytes: The shortest vectors that the kernels run on; 0 where all processors of the
            machine's kind have them.

    Returns:
        The artifact members.

    Raises:
        ModelError: TVM cannot generate code for an operation of the model.
        TargetError: no compiler for the machine is installed, or it fails.
    """
    compiler = machine.compiler()
    with tempfile.TemporaryDirectory(prefix="bscompile-") as name:
        folder = Path(name)
        compile_kernels(kernels, target, folder / "kernels.o")
        text = tables(program, list(weights_image(params)), threads, vector_bytes)
        (folder / "tables.c").write_text(text, encoding="utf-8")
        _link(machine, compiler, folder)
        return {
            EXECUTABLE: (folder / "model").read_bytes(),
            OBJECT: (folder / "model.o").read_bytes(),
            HEADER: (_SOURCES / "bscompile_model.h").read_bytes(),
            MEMBER: program.to_json().encode(),
        }


def compile_kernels(kernels: Mapping[str, Any], target: Any, path: Path) -> None:
    """Write one object file with all kernels.

    Raises:
        ModelError: TVM cannot generate code for one of them.
    """
    import tvm

    from bscompile.targets.cpu.pipeline import PASS_CONFIG
    from bscompile.targets.tir_passes import TIR_PIPELINE

    module = tvm.IRModule({name: kernels[name] for name in sorted(kernels)})
    try:
        with tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
            compiled = tvm.compile(module, target=target, tir_pipeline=TIR_PIPELINE).mod
    except tvm.error.InternalError as error:  # how TVM says that it cannot
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"no code for {target.attrs.get('mtriple', target.kind.name)} can be generated from "
            f"this model: {lines[0] if lines else type(error).__name__}"
        ) from error
    compiled.write_to_file(str(path))


def _compile(machine: Machine, compiler: Sequence[str], source: Path) -> bytes:
    """The object of a C file."""
    import tvm_ffi.libinfo

    options = [
        *("-O1", *machine.flags, f"-I{_SOURCES}"),
        f"-I{tvm_ffi.libinfo.find_include_path()}",
        f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}",
    ]
    with tempfile.TemporaryDirectory(prefix="bscompile-") as name:
        made = Path(name) / "made.o"
        _run([*compiler, *options, "-c", source, "-o", made])
        return made.read_bytes()


_compile_once = cache(_compile)  # for files that no model changes


def _link(machine: Machine, compiler: list[str], folder: Path) -> None:
    """kernels.o and tables.c in the folder -> model.o and model."""

    def runner(name: str) -> Path:
        made = folder / name.replace(".c", "_.o")
        made.write_bytes(_compile_once(machine, tuple(compiler), _SOURCES / name))
        return made

    (folder / "tables.o").write_bytes(_compile(machine, compiler, folder / "tables.c"))
    library = [runner(name) for name in ("program.c", "hooks.c", machine.host)]
    parts = [*library, folder / "tables.o", folder / "kernels.o"]
    own = [runner(name) for name in ("main.c", machine.start) if name]
    if machine.start:
        _run([*find_zig(), "ld.lld", "-r", *parts, "-o", folder / "model.o"])
        kind = ["-static", "-nostdlib", "-e", "_start"]
        libraries = ["-lcompiler_rt"]  # what the processor has no instruction for
    else:
        _run([*compiler, "-nostdlib", "-r", *parts, "-o", folder / "model.o"])
        kind, libraries = ["-static", "-s"], ["-lm", "-pthread"]
    program = [*kind, *machine.flags, *own, folder / "model.o", *libraries]
    _run([*compiler, *program, "-o", folder / "model"])


def _run(command: Sequence[object]) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        tool = "ziglang" if "ziglang" in words else Path(words[0]).name
        said = done.stderr.splitlines() or ["no reason given"]
        telling = [line for line in said if "error" in line or "undefined" in line] or said
        raise TargetError(f"{tool} could not make the executable: {telling[0].strip()}")

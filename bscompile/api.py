"""The Python face of the compiler; the command line calls the same functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bscompile.artifact import REPORT, read_artifact
from bscompile.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from bscompile.compiler import CompiledModel


def build(
    model: Any,
    target: str = "cpu",
    *,
    output: str | Path | None = None,
    threads: int | None = None,
    typical_rows: int = 128,
    dump_ir: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> CompiledModel:
    """Compile a model.

    Args:
        model: Path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model.
        target: ``name`` or ``name:variant``, such as ``cpu`` or ``cpu:avx2``.
        output: Where to save the artifact; None leaves that to ``CompiledModel.save``.
        threads: Worker threads to compile for; None takes what the machine has.
        typical_rows: Rows to plan for where the model leaves them symbolic.
        dump_ir: Folder that receives the model after every pass.
        progress: Called with one line at the start of each phase.

    Raises:
        ModelError: the model is broken or holds an operator that cannot be compiled.
        TargetError: the target is unknown, or a tool that it needs is missing.
        StorageError: the artifact cannot be written.
    """
    from bscompile.compiler import CompileOptions, compile_model

    folder = None if dump_ir is None else Path(dump_ir)
    options = CompileOptions(target, threads, typical_rows, folder)
    compiled = compile_model(model, options, progress)
    if output is not None:
        compiled.save(output)
    return compiled


def inspect(
    model: Any,
    target: str = "cpu",
    *,
    threads: int | None = None,
    typical_rows: int = 128,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """What was done, or would be done, to each layer.

    Args:
        model: Path of an artifact or an ONNX file, told apart by their content, or a model.
        target: What to plan for; an artifact keeps its own.
        threads: Worker threads to plan for.
        typical_rows: Rows to plan for where the model leaves them symbolic.
        progress: Called with one line at the start of each phase.

    Raises:
        BscompileError: the file is neither, or is broken.
    """
    if isinstance(model, str | Path) and is_artifact(model):
        return Report.from_json(read_artifact(model, weights=False).members[REPORT])
    from bscompile.compiler import CompileOptions, analyse_model

    return analyse_model(model, CompileOptions(target, threads, typical_rows), progress)


def is_artifact(path: str | Path) -> bool:
    """Whether a file begins as an artifact does; an ONNX file never does."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False  # whoever reads it next says what is wrong

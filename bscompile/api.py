"""The Python face of the compiler; the command line calls the same functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bscompile.artifact import REPORT, read_artifact
from bscompile.report import Report
from bscompile.runtime import tvm_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bscompile.compiler import CompiledModel
    from bscompile.tuning.session import Progress
    from bscompile.tuning.summary import TuningResult


def build(
    model: Any,
    target: str = "cpu",
    *,
    output: str | Path | None = None,
    threads: int | None = None,
    typical_rows: int = 128,
    buckets: Iterable[int] | None = None,
    dimensions: Mapping[str, int] | None = None,
    dtype: str = "float32",
    dump_ir: str | Path | None = None,
    database: str | Path | None = None,
    device: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> CompiledModel:
    """Compile a model.

    Args:
        model: Path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model.
        target: ``name`` or ``name:variant``, such as ``cpu`` or ``cpu:avx2``.
        output: Where to save the artifact; None leaves that to ``CompiledModel.save``.
        threads: Worker threads to compile for; None takes what the machine has.
        typical_rows: Rows to plan for where the model leaves them symbolic.
        buckets: Further rows to plan for there; None takes 1, 8, 32, 128 and 1024.
        dimensions: Lengths for symbolic dimensions of the inputs, such as ``{"batch": 1}``.
        dtype: What linear layers are stored and multiplied in: ``float32``, ``tf32``, ``bf16``,
            ``fp16`` or ``int8``; all else stays float32.
        dump_ir: Folder that receives the model after every pass.
        database: Tuning database to take measured choices from; None takes the user's own.
        device: Key of the RPC device that it is compiled for and was tuned on; None is this one.
        progress: Called with one line at the start of each phase.

    Raises:
        ModelError: the model is broken or holds an operator that cannot be compiled.
        TargetError: the target is unknown, or a tool that it needs is missing.
        StorageError: the artifact cannot be written.
    """
    tvm_library.import_compiler()
    from bscompile.compiler import CompileOptions, compile_model
    from bscompile.dialect.precision import precision_named
    from bscompile.targets.buckets import bucket_list

    folder = None if dump_ir is None else Path(dump_ir)
    records = None if database is None else Path(database)
    options = CompileOptions(
        *(target, threads, typical_rows, dimensions or {}, folder, records, device),
        precision=precision_named(dtype),
        buckets=bucket_list(buckets),
    )
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
    buckets: Iterable[int] | None = None,
    dimensions: Mapping[str, int] | None = None,
    dtype: str = "float32",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """What was done, or would be done, to each layer.

    Args:
        model: Path of an artifact or an ONNX file, told apart by their content, or a model.
        target: What to plan for; an artifact keeps its own.
        threads: Worker threads to plan for.
        typical_rows: Rows to plan for where the model leaves them symbolic.
        buckets: Further rows to plan for there; None takes 1, 8, 32, 128 and 1024.
        dimensions: Lengths for symbolic dimensions of the inputs, such as ``{"batch": 1}``.
        dtype: What linear layers are stored and multiplied in: ``float32``, ``tf32``, ``bf16``,
            ``fp16`` or ``int8``; all else stays float32.
        progress: Called with one line at the start of each phase.

    Raises:
        BscompileError: the file is neither, or is broken.
    """
    if isinstance(model, str | Path) and is_artifact(model):
        return Report.from_json(read_artifact(model, weights=False).members[REPORT])
    tvm_library.import_compiler()
    from bscompile.compiler import CompileOptions, analyse_model
    from bscompile.dialect.precision import precision_named
    from bscompile.targets.buckets import bucket_list

    lengths = dimensions or {}
    options = CompileOptions(
        *(target, threads, typical_rows, lengths),
        precision=precision_named(dtype),
        buckets=bucket_list(buckets),
    )
    return analyse_model(model, options, progress)


def tune(
    model: Any,
    target: str = "cpu",
    *,
    trials: int = 32,
    timeout: float | None = None,
    jobs: int = 1,
    database: str | Path | None = None,
    merge: Iterable[str | Path] = (),
    rpc: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    typical_rows: int = 128,
    buckets: Iterable[int] | None = None,
    dimensions: Mapping[str, int] | None = None,
    dtype: str = "float32",
    report: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> TuningResult:
    """Find by measurement what each layer of a model runs fastest in; ``build`` then uses it.

    What the database knows already is not measured again. Every record is on disk as soon as it
    is there, so nothing is lost when this is interrupted.

    Args:
        model: Path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model.
        target: ``name`` or ``name:variant``.
        trials: Candidates of each distinct problem.
        timeout: Seconds for all of it; None takes what the trials take.
        jobs: Candidates that are built at once; with ``rpc`` devices that measure at once.
        database: Where records are kept; None takes the user's own.
        merge: Databases or artifacts whose records are taken over first.
        rpc: ``host:port`` of a TVM RPC tracker; needs ``device``.
        device: Key under which the tracker lends devices.
        threads: Worker threads to tune for.
        typical_rows: Rows to plan for where the model leaves them symbolic.
        buckets: Further rows to plan for there; None takes 1, 8, 32, 128 and 1024.
        dimensions: Lengths for symbolic dimensions of the inputs, such as ``{"batch": 1}``.
        dtype: What linear layers are stored and multiplied in: ``float32``, ``tf32``, ``bf16``,
            ``fp16`` or ``int8``; all else stays float32.
        report: Where to write an HTML page about it.
        progress: Called with one line at the start of each phase.
        watch: Called after every candidate.

    Raises:
        ModelError: the model is broken or holds an operator that cannot be compiled.
        TargetError: the target is unknown, or its kernels cannot be timed one by one.
        UsageError: optuna is missing, or ``rpc`` is not ``host:port``.
        StorageError: the database or the report cannot be written.
    """
    from bscompile.compiler import CompileOptions
    from bscompile.dialect.precision import precision_named
    from bscompile.files import check_writable, write_atomically
    from bscompile.targets.buckets import bucket_list
    from bscompile.tuner import tune_model
    from bscompile.tuning.database import Database, default_path, read_database
    from bscompile.tuning.runner import parse_tracker
    from bscompile.tuning.session import TuneOptions

    runner = parse_tracker(rpc, device)
    if report is not None:
        check_writable(report)
    records = Database(default_path() if database is None else Path(database))
    for source in merge:
        records.merge(read_database(source))
    options = CompileOptions(
        *(target, threads, typical_rows, dimensions or {}),
        device=device,
        precision=precision_named(dtype),
        buckets=bucket_list(buckets),
    )
    settings = TuneOptions(trials=trials, timeout=timeout, jobs=jobs, runner=runner)
    tuned = tune_model(
        *(model, options, settings, records),
        time_whole=True if report is not None else None,
        say=progress or (lambda line: None),
        watch=watch,
    )
    if report is not None and tuned.layers:
        from bscompile.report.tuning_page import tuning_page

        page = tuning_page(tuned.result, tuned.layers[0].context.hardware)
        write_atomically(report, page.encode())
    return tuned.result


def is_artifact(path: str | Path) -> bool:
    """Whether a file begins as an artifact does; an ONNX file never does."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False  # whoever reads it next says what is wrong

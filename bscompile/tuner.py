"""Tuning a model: its problems, what each runs fastest in, the order of its features, the whole.

Other orders of hidden features are decided once their layers were measured; what the chosen order
leaves to tune, such as further buckets of symbolic rows, is tuned then.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bscompile.compiler import CompileOptions, collect_layers, compile_model
from bscompile.tuning.database import Database
from bscompile.tuning.measurer import Layer
from bscompile.tuning.session import LayerOutcome, Progress, TuneOptions, tune_layers
from bscompile.tuning.summary import TuningResult, WholeModel, summarise


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a tuning came to.

    Attributes:
        result: For tables, JSON and pages.
        layers: The distinct problems of the model as it would now be built.
    """

    result: TuningResult
    layers: list[Layer]


def tune_model(
    model: Any,
    options: CompileOptions,
    settings: TuneOptions,
    database: Database,
    *,
    time_whole: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Tuned:
    """Measure what the database does not know and say what should run.

    Args:
        model: Path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model.
        options: What to compile for.
        settings: How hard to search.
        database: Is asked first and receives every record; it lies in a file.
        time_whole: Whether to time the whole model; None where something new was measured.
        say: Called with one line at the start of each phase.
        watch: Called after every candidate.
    """
    begun = time.monotonic()
    found = collect_layers(model, options, say, database)
    say("tuning")
    outcomes = tune_layers(found.layers, database, settings, watch)
    new = _measured_now(outcomes)
    if found.undecided:
        say("deciding the order of features")
        found = collect_layers(model, options, say, database)
        if settings.timeout is not None:
            left = begun + settings.timeout - time.monotonic()
            settings = replace(settings, timeout=max(0.0, left))
        outcomes = tune_layers(found.layers, database, settings, watch)
        new |= _measured_now(outcomes)
        outcomes = [replace(o, tuned_now=o.layer.key.digest in new) for o in outcomes]
    counts = found.layers[0].context.target.counts if found.layers else ""
    whole = None
    runs_here = settings.runner is None and isinstance(model, str | Path) and not counts
    if runs_here and (bool(new) if time_whole is None else time_whole):
        say("timing the whole model beside onnxruntime")
        whole = _whole_model(Path(model), replace(options, database=database.path))
    result = TuningResult(
        str(database.path),
        tuple(database.damaged),
        summarise(outcomes),
        whole,
        counts,
        found.orders,
    )
    return Tuned(result, found.layers)


def _measured_now(outcomes: Iterable[LayerOutcome]) -> set[str]:
    return {outcome.layer.key.digest for outcome in outcomes if outcome.tuned_now}


def _whole_model(model: Path, options: CompileOptions) -> WholeModel:
    """Build with what was tuned and time the artifact."""
    from bscompile.benchmark import bench

    compiled = compile_model(model, options)
    with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
        artifact = compiled.save(Path(folder) / "model.bsc")
        times = bench(artifact, model, lengths=options.dimensions, threads=options.threads)
    assert times.onnxruntime is not None  # a model was given
    return WholeModel(times.artifact.median, times.onnxruntime.median)

"""The road: from an ONNX model to an artifact, phase by phase.

    1 resolve the target   2 import   3 check that every operator can be compiled
    4 passes up to the form choice    5 lower to Relax    6 generate code    7 package

Each phase hands a value to the next; nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx_ir as ir

from bscompile import artifact, importer, targets
from bscompile.artifact.manifest import Manifest
from bscompile.dialect.precision import Precision
from bscompile.passes import pipeline
from bscompile.passes.base import GraphPass, Note
from bscompile.passes.permute_features import PermuteFeatures
from bscompile.passes.recognise_quantized import is_quantized_model
from bscompile.report.build import make_report
from bscompile.targets.buckets import BUCKETS
from bscompile.tuning.database import MEMBER, Database, default_path

if TYPE_CHECKING:
    from bscompile.dialect import LinearOp
    from bscompile.passes.choice import OrderJudge, Planner
    from bscompile.report import Report
    from bscompile.targets.base import TargetContext
    from bscompile.targets.choices import FormChoice
    from bscompile.targets.lowering import Lowered
    from bscompile.tuning.measurer import Layer

Progress = Callable[[str], None]
ModelLike = Any  # a path, an onnx.ModelProto or an onnx_ir.Model


@dataclass(frozen=True)
class CompileOptions:
    """What a user may choose.

    Attributes:
        target: ``name`` or ``name:variant``, such as ``cpu`` or ``cpu:avx2``.
        threads: Worker threads to compile for; None takes what the machine has.
        typical_rows: Rows of x to plan for where the model leaves them symbolic.
        dimensions: Lengths for symbolic dimensions of the inputs; the others stay symbolic.
        dump_ir: Folder that receives the model after every pass, as ONNX files.
        database: Tuning database to take measured choices from; None takes the user's own.
        device: Key under which an RPC tracker lends the machine to compile for; None is this one.
        precision: What linear layers are stored and multiplied in, see dialect/precision.py.
        buckets: Further numbers of rows to plan for where the model leaves them symbolic.
    """

    target: str = "cpu"
    threads: int | None = None
    typical_rows: int = 128
    dimensions: Mapping[str, int] = field(default_factory=dict)
    dump_ir: Path | None = None
    database: Path | None = None
    device: str | None = None
    precision: str = "float32"
    buckets: tuple[int, ...] = BUCKETS


@dataclass(frozen=True, eq=False)
class CompiledModel:
    """What ``build`` makes: everything that goes into the artifact.

    Attributes:
        manifest: The contract of the artifact.
        members: Code, file name -> bytes.
        weights: Packed weights, name -> array as stored.
        report: What was done to each layer and why.
    """

    manifest: Manifest
    members: dict[str, bytes] = field(repr=False)
    weights: dict[str, npt.NDArray[Any]] = field(repr=False)
    report: Report = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the artifact atomically and return its path.

        Raises:
            StorageError: the file cannot be written; nothing half-written is left.
        """
        return artifact.write_artifact(
            Path(path), self.manifest, self.members, self.weights, self.report.to_json()
        )


def compile_model(
    model: ModelLike, options: CompileOptions | None = None, progress: Progress | None = None
) -> CompiledModel:
    """Compile a model for a target.

    Args:
        model: Path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model (left unchanged).
        options: What to compile for.
        progress: Called with one line at the start of each phase.

    Raises:
        ModelError: the model is broken or holds an operator that cannot be compiled.
        TargetError: the target is unknown, or a tool that it needs is missing.
    """
    options = options or CompileOptions()
    say = progress or (lambda line: None)
    prepared = _prepare(model, options, say)
    from bscompile.targets.lowering import lower

    say("lowering to Relax")
    lowered = lower(prepared.model, prepared.context, use_up=True)
    say("generating code")
    target = prepared.context.target
    if target.prepare is not None:
        lowered = target.prepare(lowered, prepared.context)
    members = target.build(lowered, prepared.context)
    say("packing weights")
    return _package(prepared, lowered, members)


def analyse_model(
    model: ModelLike, options: CompileOptions | None = None, progress: Progress | None = None
) -> Report:
    """Everything up to the form choice: what would be done to each layer, without any code."""
    options = options or CompileOptions()
    return _prepare(model, options, progress or (lambda line: None)).report


@dataclass(frozen=True, eq=False)
class Collected:
    """What there is to tune in a model.

    Attributes:
        layers: The distinct problems that its layers pose.
        orders: Sentences about other orders of its hidden features.
        undecided: How many orders wait for layers to be measured; these are among ``layers``.
    """

    layers: list[Layer]
    orders: tuple[str, ...]
    undecided: int


def collect_layers(
    model: ModelLike,
    options: CompileOptions | None = None,
    progress: Progress | None = None,
    database: Database | None = None,
) -> Collected:
    """The distinct problems that the model's layers pose.

    Args:
        model: Path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model (left unchanged).
        options: What to compile for.
        progress: Called with one line at the start of each phase.
        database: What was measured before; it says which order hidden features take.
    """
    from bscompile.tuning.collect import Collector

    options = options or CompileOptions()
    say = progress or (lambda line: None)
    target = _resolve(options, say)
    graph = _read(model, options, say)
    context = _for_precisions(target, options, graph)
    collector = Collector(context, database)
    passes = _passes(options, context, collector, collector.judge)
    notes = _rewrite(graph, passes[:-1], options, say)  # the last one writes for other readers
    orders = tuple(
        f"{note.layer}: {note.text}"
        for note in notes
        if note.pass_name == PermuteFeatures.__name__ and "other order of" in note.text
    )
    return Collected(collector.layers, orders, collector.undecided)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Phases 1 to 4: the rewritten model and what was said on the way."""

    context: TargetContext
    model: ir.Model
    report: Report = field(repr=False)
    tuning: str


def _prepare(model: ModelLike, options: CompileOptions, say: Progress) -> _Prepared:
    from bscompile.tuning.planner import TunedPlanner

    target = _resolve(options, say)
    graph = _read(model, options, say)
    context = _for_precisions(target, options, graph)
    database = Database(options.database or default_path())
    planner = TunedPlanner(database, context)
    notes = _rewrite(graph, _passes(options, context, planner, planner.judge), options, say)
    if database.damaged:
        text = f"{len(database.damaged)} lines could not be read, such as {database.damaged[0]}"
        notes.append(Note("TuningDatabase", str(database.path), text, applied=False))
    if caveat := context.hardware.caveats.get(options.precision):
        notes.append(Note("Precision", context.hardware.name, caveat, applied=False))
    report = make_report(
        *(graph, notes, context.hardware, options.typical_rows),
        places=context.target.places,
        templates=context.target.templates,
    )
    return _Prepared(context, graph, report, database.to_text(planner.used))


def _resolve(options: CompileOptions, say: Progress) -> TargetContext:
    say(f"looking at target {options.target}")
    context = targets.resolve(options.target, options.threads, options.typical_rows)
    context = replace(context, buckets=options.buckets)
    if options.device is None:
        return context
    # What was measured there is not mixed with what was measured here.
    return replace(context, hardware=replace(context.hardware, name=f"RPC {options.device}"))


def _for_precisions(
    context: TargetContext, options: CompileOptions, graph: ir.Model
) -> TargetContext:
    """The machine with what it has for the user's precision, and for int8 that comes so."""
    wanted = [options.precision, *(["int8"] if is_quantized_model(graph) else [])]
    return replace(context, hardware=context.hardware.extended(*wanted))


def _read(model: ModelLike, options: CompileOptions, say: Progress) -> ir.Model:
    """Phases 2 and 3."""
    from bscompile.targets.lowering.support import check_supported

    say("reading the model")
    graph = importer.load_model(model, options.dimensions)
    check_supported(graph)
    return graph


def _passes(
    options: CompileOptions, context: TargetContext, planner: Planner, judge: OrderJudge
) -> list[GraphPass]:
    return pipeline.pipeline(planner, options.precision, partial(_price, context), judge)


def _rewrite(
    graph: ir.Model, passes: list[GraphPass], options: CompileOptions, say: Progress
) -> list[Note]:
    """Phase 4."""
    dump = None if options.dump_ir is None else partial(_dump, options.dump_ir)
    return pipeline.run(graph, passes, dump=dump, progress=say)


def _price(
    context: TargetContext, op: LinearOp, rows: int | None, dtype: Precision, step: int = 1
) -> FormChoice:
    """What the cost model says of a layer at the typical rows."""
    from bscompile.targets.planner import plan

    return plan(op, rows, dtype, replace(context, buckets=()), step)


def _dump(folder: Path, number: int, name: str, model: ir.Model) -> None:
    """Save the model as it stands after a pass; ours are ONNX functions, so it runs anywhere."""
    from bscompile.passes.write_dialect import save_copy

    save_copy(model, folder / f"{number:02d}_{name}.onnx")


def _package(prepared: _Prepared, lowered: Lowered, members: dict[str, bytes]) -> CompiledModel:
    weights, params = artifact.pack_params(lowered.params)
    hardware = prepared.context.hardware
    if prepared.tuning:
        members = {**members, MEMBER: prepared.tuning.encode()}
    manifest = Manifest(
        name=prepared.model.graph.name or "model",
        target=prepared.context.target.name,
        isa=hardware.isa,
        features=hardware.features,
        threads=hardware.cores,
        loader=prepared.context.target.loader,
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        params=params,
        machine=hardware.machine,
    )
    return CompiledModel(manifest, members, weights, prepared.report)

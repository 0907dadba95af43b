"""The report of a model whose forms are chosen, read from its dialect nodes.

FLOPs count a multiplication and an addition as two. For rows m and W [out, in]:

    dense          2 m out in
    block-sparse   2 m nnzb bh bw
    Kronecker      2 m r min(in bh + nnz bh, nnz bw + out bw): B first or A first
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from bscompile.dialect import (
    CHOICE_KEY,
    FOUND_KEY,
    LinearOp,
    Weight,
    is_dialect,
    read_node,
)
from bscompile.dialect.forms import in_form
from bscompile.dialect.precision import precision_of
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.passes.base import Note
from bscompile.passes.choose_form import rows_of
from bscompile.report.model import BucketReport, LayerReport, PassNote, Report
from bscompile.report.partition import partition
from bscompile.targets.base import HardwareSpec, KernelTemplate, problem_of

_FLOAT32 = 4  # bytes; what a dense engine would store


def make_report(
    model: ir.Model,
    notes: Iterable[Note],
    hardware: HardwareSpec,
    typical_rows: int = 128,
    places: Mapping[str, str] | None = None,
    templates: Iterable[KernelTemplate] = (),
) -> Report:
    """Say what became of every linear layer.

    Args:
        model: After the form choice; its dialect nodes carry what was found and chosen.
        notes: What the passes did and refused.
        hardware: The machine that the costs are for.
        typical_rows: Rows to count where the model leaves them symbolic.
        places: Kernel template -> part of the machine, where that has several.
        templates: Those of the target, for what may run in their place.
    """
    named = {template.name: template for template in templates}
    return Report(
        hardware=hardware.name,
        isa=hardware.isa,
        threads=hardware.cores,
        layers=tuple(
            _layer(node, typical_rows, named)
            for node in model.graph.all_nodes()
            if is_dialect(node)
        ),
        notes=tuple(PassNote(n.pass_name, n.layer, n.text, n.applied) for n in notes),
        partition=partition(model, places) if places else (),
    )


def _layer(
    node: ir.Node, typical_rows: int, templates: Mapping[str, KernelTemplate]
) -> LayerReport:
    op = read_node(node)
    found = json.loads(node.metadata_props.get(FOUND_KEY, "{}"))
    choice = json.loads(node.metadata_props.get(CHOICE_KEY, "{}"))
    fixed, step = rows_of(node)
    rows = fixed or max(typical_rows, step)
    out, inner = op.shape
    kept = op.weight
    if choice.get("buckets"):  # what is stored may serve several forms
        op = op.with_weight(in_form(kept, choice["form"], tuple(choice["block"])))
    return LayerReport(
        name=op.name,
        op=op.op_type,
        shape=op.shape,
        rows=rows,
        found=found.get("kind", op.form),
        trained_block=_trained_block(found, op.weight),
        density=found.get("density", _density(op.weight)),
        rank=found.get("rank", op.weight.rank if isinstance(op.weight, KroneckerSum) else 0),
        form=op.form,
        block=_block(op.weight),
        template=choice.get("template", ""),
        config=_config(choice.get("config", {})),
        dense_flops=2 * rows * out * inner,
        flops=2 * rows * macs_per_row(op.weight),
        dense_bytes=out * inner * _FLOAT32,
        bytes=_stored_bytes(kept, op, choice),
        dense_seconds=choice.get("dense_seconds"),
        expected_seconds=choice.get("seconds"),
        reason=_reason(op, found, choice, templates.get(choice.get("template", ""))),
        considered=tuple((str(k), float(v)) for k, v in choice.get("considered", [])),
        tuned=bool(choice.get("tuned", False)),
        dtype=precision_of(op).name,
        buckets=tuple(_bucket(bucket) for bucket in choice.get("buckets", ())),
    )


def _bucket(bucket: dict[str, Any]) -> BucketReport:
    bh, bw = bucket["block"]
    return BucketReport(
        rows=int(bucket["rows"]),
        up_to=bucket["up_to"],
        form=bucket["form"],
        block=None if bucket["form"] == "dense" else (int(bh), int(bw)),
        template=bucket["template"],
        config=_config(bucket["config"]),
        dense_seconds=float(bucket["dense_seconds"]),
        expected_seconds=float(bucket["seconds"]),
        tuned=bool(bucket["tuned"]),
    )


def _config(config: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in config.items())


def _stored_bytes(kept: Weight, op: LinearOp, choice: dict[str, Any]) -> int:
    """Of the weight in every form and block that any number of rows runs in."""
    forms = {(op.form, _block(op.weight) or (1, 1)): int(op.weight.nbytes)}
    for bucket in choice.get("buckets", ()):
        kind = (bucket["form"], tuple(bucket["block"]))
        if kind not in forms:
            forms[kind] = int(in_form(kept, *kind).nbytes)
    return sum(forms.values())


def macs_per_row(weight: Weight) -> int:
    """Multiply-adds for one row of x."""
    if isinstance(weight, KroneckerSum):
        return min(weight.macs_per_row("b_first"), weight.macs_per_row("a_first"))
    if isinstance(weight, BlockSparseMatrix):
        return int(weight.values.size)
    return int(weight.size)


def _reason(
    op: LinearOp, found: dict[str, Any], choice: dict[str, Any], template: KernelTemplate | None
) -> str:
    """Why this form; of a layer that stayed dense also what its weight looked like."""
    parts = [choice.get("reason", "")]
    if op.form == "dense":
        parts.append(found.get("reason", ""))
    if template is not None:
        rival = template.rival(problem_of(op, None, precision_of(op)))
        parts.append(f"runs on {rival} where that is there and faster" if rival else "")
    return "; ".join(part for part in parts if part)


def _trained_block(found: dict[str, Any], weight: Weight) -> tuple[int, int] | None:
    block = found.get("block") or _block(weight)
    return None if block is None or tuple(block) == (1, 1) else (int(block[0]), int(block[1]))


def _block(weight: Weight) -> tuple[int, int] | None:
    return weight.block if isinstance(weight, BlockSparseMatrix | KroneckerSum) else None


def _density(weight: Weight) -> float:
    return weight.density if isinstance(weight, BlockSparseMatrix | KroneckerSum) else 1.0

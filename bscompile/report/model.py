"""The report as plain values that survive JSON. Standard library only: the runtime reads it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bscompile.errors import ArtifactError

_SUMMED = (
    "dense_flops",
    "flops",
    "dense_bytes",
    "bytes",
    "dense_seconds",
    "expected_seconds",
)


@dataclass(frozen=True)
class BucketReport:
    """How a layer with symbolic rows runs for some numbers of rows.

    Attributes:
        rows: What it was chosen for.
        up_to: The most rows that it serves; None for no limit.
        form: Form that runs.
        block: (bh, bw) of that form; None for dense.
        template: Kernel template.
        config: Its configuration, as text.
        dense_seconds: Expected time of the dense form with ``rows`` rows.
        expected_seconds: Expected time of the form that runs.
        tuned: Whether these were measured.
    """

    rows: int
    up_to: int | None
    form: str
    block: tuple[int, int] | None
    template: str
    config: str
    dense_seconds: float
    expected_seconds: float
    tuned: bool


@dataclass(frozen=True)
class LayerReport:
    """One linear layer: what it was, what it became, what it costs.

    Attributes:
        name: As in the user's model.
        op: Dialect operator, such as ``BlockSparseMatMul``.
        shape: (out, in) of W.
        rows: Rows of x that the costs are for.
        found: What the weight was recognised as, such as ``block_sparse``.
        trained_block: (bh, bw) in which the weight is zero or factorized; None if in none.
        density: Share of live blocks, 0 to 1.
        rank: Kronecker terms; 0 where the layer is not factorized.
        form: Form that runs: ``dense``, ``block_sparse`` or ``kronecker``.
        block: (bh, bw) of the form that runs; None for dense.
        template: Kernel template.
        config: Its configuration, as text.
        dense_flops: 2 rows out in.
        flops: Of the form that runs.
        dense_bytes: Of W.
        bytes: Of the weight as it runs, its indices included.
        dense_seconds: Expected time of the dense form; None where no form was chosen yet.
        expected_seconds: Expected time of the form that runs; None likewise.
        measured_seconds: Time measured on a machine; None until somebody measures.
        reason: Why this form, or why the layer stayed dense.
        considered: (candidate, expected seconds), fastest first.
        tuned: Whether the form was chosen by measurement; its times were measured then, too.
        dtype: What the weight is stored and multiplied in.
        buckets: For symbolic rows, what runs for how many; all else is about ``rows``.
    """

    name: str
    op: str
    shape: tuple[int, int]
    rows: int
    found: str
    trained_block: tuple[int, int] | None
    density: float
    rank: int
    form: str
    block: tuple[int, int] | None
    template: str
    config: str
    dense_flops: int
    flops: int
    dense_bytes: int
    bytes: int
    dense_seconds: float | None
    expected_seconds: float | None
    measured_seconds: float | None = None
    reason: str = ""
    considered: tuple[tuple[str, float], ...] = ()
    tuned: bool = False
    dtype: str = "float32"
    buckets: tuple[BucketReport, ...] = ()


@dataclass(frozen=True)
class PassNote:
    """One thing that a pass did or declined to do."""

    pass_name: str
    layer: str
    text: str
    applied: bool


@dataclass(frozen=True)
class Report:
    """Everything that ``inspect`` shows.

    Attributes:
        hardware: Name of the machine that the costs are for.
        isa: Instruction set variant.
        threads: Worker threads that the costs are for.
        layers: In the order in which they run.
        notes: What the passes did and refused.
        partition: (part of the machine, what it runs), for machines of several parts.
    """

    hardware: str
    isa: str
    threads: int
    layers: tuple[LayerReport, ...]
    notes: tuple[PassNote, ...] = ()
    partition: tuple[tuple[str, str], ...] = ()

    @property
    def tuned(self) -> str:
        """For people, such as ``48 of 48 layers tuned``."""
        return f"{sum(layer.tuned for layer in self.layers)} of {len(self.layers)} layers tuned"

    def totals(self) -> dict[str, float]:
        """Sums over the layers of FLOPs, bytes and expected seconds, dense and now."""
        return {key: sum(getattr(layer, key) or 0 for layer in self.layers) for key in _SUMMED}

    def with_measured(self, seconds: Sequence[float]) -> Report:
        """The same report with a measured time for each layer, in their order."""
        layers = tuple(
            dataclasses.replace(layer, measured_seconds=time)
            for layer, time in zip(self.layers, seconds, strict=True)
        )
        return dataclasses.replace(self, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers, with the totals."""
        return {**dataclasses.asdict(self), "totals": self.totals()}

    def to_json(self) -> str:
        """The text of report.json."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """Read report.json.

        Raises:
            ArtifactError: not JSON, or not a report.
        """
        try:
            body = json.loads(text)
            body.pop("totals", None)
            layers = tuple(_layer(entry) for entry in body.pop("layers"))
            notes = tuple(PassNote(**entry) for entry in body.pop("notes"))
            parts = tuple((str(part), str(what)) for part, what in body.pop("partition", ()))
            return cls(layers=layers, notes=notes, partition=parts, **body)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"report.json: not a report, {error}") from error


def _layer(entry: dict[str, Any]) -> LayerReport:
    pairs = {
        key: None if entry[key] is None else tuple(entry[key])
        for key in ("shape", "trained_block", "block")
    }
    considered = tuple((str(label), float(seconds)) for label, seconds in entry["considered"])
    buckets = tuple(_bucket(bucket) for bucket in entry.get("buckets", ()))
    return LayerReport(**{**entry, **pairs, "considered": considered, "buckets": buckets})


def _bucket(entry: dict[str, Any]) -> BucketReport:
    block = entry["block"]
    return BucketReport(**{**entry, "block": None if block is None else tuple(block)})

"""What a tuning found, as plain values for tables, JSON and the HTML report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.dialect import Weight
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.tuning.record import OK, TuningRecord
from bscompile.tuning.roofline import flops, problems_of, share_of_roofline, traffic_bytes
from bscompile.tuning.session import LayerOutcome

_MAP_SIDE = 96  # cells of a sparsity map, at most, on each side


@dataclass(frozen=True)
class Point:
    """The fastest candidate of one form and execution block.

    Attributes:
        label: Such as ``block_sparse 16x8``.
        form: ``dense``, ``block_sparse`` or ``kronecker``.
        block: Execution block.
        seconds: Of one call, measured.
        expected: By the cost model.
        flops: Of one call in that form.
        bytes: Weight, x and y in that form.
    """

    label: str
    form: str
    block: tuple[int, int]
    seconds: float
    expected: float
    flops: int
    bytes: int


@dataclass(frozen=True)
class LayerSummary:
    """One problem.

    Attributes:
        name: Of its first layer.
        uses: Layers of the model that pose it.
        shape: (out, in).
        rows: Rows of x that were run.
        precision: What it is multiplied in, such as ``float32``.
        found: Form in which it was recognised.
        trained_block: Block in which it was recognised.
        density: Share of live blocks.
        winner: What to run.
        config: Template and configuration of the winner.
        seconds: Of the winner; None where no candidate is right.
        dense_seconds: Of the dense form beside it.
        model_seconds: Of what the cost model would have chosen, where that was measured.
        roofline: Share of the machine's limit that the winner reaches.
        statuses: Status -> candidates.
        curve: Fastest candidate of each form and block, in the order of the block's area.
        trials: Seconds of each trial in order; None where it failed.
        sparsity: Share of live blocks in each cell of a coarse grid, 0 to 1.
        tuned_now: Whether it was measured in this run.
    """

    name: str
    uses: int
    shape: tuple[int, int]
    rows: int
    precision: str
    found: str
    trained_block: tuple[int, int]
    density: float
    winner: str
    config: str
    seconds: float | None
    dense_seconds: float | None
    model_seconds: float | None
    roofline: float | None
    statuses: dict[str, int]
    curve: tuple[Point, ...]
    trials: tuple[float | None, ...]
    sparsity: tuple[tuple[float, ...], ...]
    tuned_now: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the sparsity map."""
        body = asdict(self)
        del body["sparsity"]
        return body


@dataclass(frozen=True)
class WholeModel:
    """The whole model as it would now be built, beside ONNX Runtime.

    Attributes:
        seconds: Median of one call.
        onnxruntime_seconds: Median of one call there, in turns with ours.
    """

    seconds: float
    onnxruntime_seconds: float

    @property
    def verdict(self) -> str:
        """For people; a loss is called one."""
        ratio = self.onnxruntime_seconds / self.seconds
        times = f"{self.seconds * 1e3:.2f} ms, onnxruntime {self.onnxruntime_seconds * 1e3:.2f} ms"
        said = (
            f"{ratio:.2f} times as fast" if ratio >= 1 else f"it LOSES: {ratio:.2f} times as fast"
        )
        return f"whole model {times}: {said}"


@dataclass(frozen=True)
class TuningResult:
    """What a tuning of a model brought.

    Attributes:
        database: Path of the database.
        damaged: A sentence for each of its lines that could not be read.
        layers: One summary for each distinct problem.
        whole: The whole model beside ONNX Runtime; None where nothing new was found, or the
            model cannot be run here, or where nothing was timed.
        counts: What the seconds count where they are no time; else empty.
        orders: A sentence for each other order of hidden features that was taken or measured.
    """

    database: str
    damaged: tuple[str, ...]
    layers: tuple[LayerSummary, ...]
    whole: WholeModel | None = None
    counts: str = ""
    orders: tuple[str, ...] = ()

    @property
    def losses(self) -> tuple[str, ...]:
        """Layers whose best form is not the fastest that was timed beside it."""
        return tuple(
            layer.name
            for layer in self.layers
            if layer.seconds is not None
            and layer.dense_seconds is not None
            and layer.seconds > layer.dense_seconds
        )

    @property
    def headline(self) -> str:
        """For people, such as ``48 of 48 problems tuned, 12 of them now``."""
        known = [layer for layer in self.layers if layer.seconds is not None]
        now = sum(layer.tuned_now for layer in known)
        text = f"{len(known)} of {len(self.layers)} distinct problems tuned"
        return f"{text}, {now} of them now" if now else f"{text}, nothing was left to tune"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        layers = [layer.to_dict() for layer in self.layers]
        whole = asdict(self.whole) if self.whole else None
        return {
            "database": self.database,
            "damaged": list(self.damaged),
            "layers": layers,
            "whole": whole,
            "counts": self.counts,
            "losses": list(self.losses),
            "orders": list(self.orders),
        }


def summarise(outcomes: Iterable[LayerOutcome]) -> tuple[LayerSummary, ...]:
    """One summary for each problem, in the order of the model."""
    return tuple(_summary(outcome) for outcome in outcomes)


def _summary(outcome: LayerOutcome) -> LayerSummary:
    layer, best = outcome.layer, outcome.best
    problem = layer.problem
    records = best.records if best else ()
    trials = [record for record in records if not record.final]
    winner = best.winner if best else None
    return LayerSummary(
        name=layer.op.name,
        uses=layer.uses,
        shape=layer.op.shape,
        rows=problem.rows,
        precision=problem.dtype,
        found=problem.form,
        trained_block=problem.block,
        density=_density(layer.op.weight),
        winner=winner.variant.label if winner else "",
        config=str(winner.variant) if winner else "",
        seconds=winner.time if winner else None,
        dense_seconds=best.dense.time if best else None,
        model_seconds=_model_seconds(records),
        roofline=share_of_roofline(layer, winner) if winner else None,
        statuses=dict(Counter(record.status for record in trials)),
        curve=_curve(outcome, records),
        trials=tuple(r.time if r.status == OK else None for r in trials),
        sparsity=sparsity_map(layer.op.weight),
        tuned_now=outcome.tuned_now,
    )


def _model_seconds(records: Iterable[TuningRecord]) -> float | None:
    """What the cost model's first choice takes, beside the finalists where it was one.

    Every search tries it, so it is the one of which least is expected.
    """
    everything = tuple(records)
    least = min((r.variant.expected for r in everything), default=0.0)
    measured = [r for r in everything if r.status == OK and r.variant.expected == least]
    measured.sort(key=lambda record: (record.final, record.run))
    return measured[-1].time if measured else None


def _curve(outcome: LayerOutcome, records: Iterable[TuningRecord]) -> tuple[Point, ...]:
    fastest: dict[str, TuningRecord] = {}
    for record in sorted(records, key=lambda record: record.time):
        if record.status == OK:
            fastest.setdefault(record.variant.label, record)
    problems = problems_of(outcome.layer)
    points = []
    for record in fastest.values():
        problem = problems[record.variant.form, record.variant.block]
        points.append(
            Point(
                record.variant.label,
                record.variant.form,
                record.variant.block,
                record.time,
                record.variant.expected,
                flops(problem),
                traffic_bytes(problem),
            )
        )
    return tuple(sorted(points, key=lambda p: (p.form, p.block[0] * p.block[1], p.block)))


def _density(weight: Weight) -> float:
    return weight.density if isinstance(weight, BlockSparseMatrix | KroneckerSum) else 1.0


def sparsity_map(weight: Weight) -> tuple[tuple[float, ...], ...]:
    """Share of live blocks in each cell of a grid that fits a page; one full cell for dense."""
    if isinstance(weight, np.ndarray):
        return ((1.0,),)
    mask: npt.NDArray[np.bool_]
    mask = weight.mask() if isinstance(weight, BlockSparseMatrix) else weight.support
    rows, columns = (_cells(side) for side in mask.shape)
    live = np.add.reduceat(mask.astype(np.float64), rows[0], axis=0)
    live = np.add.reduceat(live, columns[0], axis=1) / np.outer(rows[1], columns[1])
    return tuple(tuple(row) for row in live.tolist())


def _cells(side: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(where each cell begins, how long it is) along one side: as even as whole blocks allow."""
    count = min(_MAP_SIDE, side)
    lengths = np.full(count, side // count)
    lengths[: side % count] += 1
    return np.cumsum(lengths) - lengths, lengths

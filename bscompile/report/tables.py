"""The report as tables for people. Nothing is cut: what does not fit wraps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bscompile.report.model import BucketReport, LayerReport, Report

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def report_view(report: Report, *, notes: bool = False) -> RenderableType:
    """Everything about a model: machine, layers, totals, reasons.

    Args:
        report: What to show.
        notes: Also every note of the passes that applied; refusals are always shown.
    """
    head = f"{report.hardware}, {report.isa}, {report.threads} threads"
    parts: list[RenderableType] = [Text(f"Costs are for {head}")]
    if report.layers:
        parts += [layer_table(report), _totals(report), *_by_rows(report), *_reasons(report)]
    else:
        parts.append(Text("No linear layer was found."))
    parts += list(_partition(report))
    parts += list(_notes(report, notes))
    return Group(*parts)


def layer_table(report: Report) -> Table:
    """One row per layer."""
    measured = any(layer.measured_seconds is not None for layer in report.layers)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    for name in ("out x in", "rows", "found", "density", "runs as", "FLOP", "bytes"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("dense", justify="right", overflow="fold")
    table.add_column("expected", justify="right", overflow="fold")
    if measured:
        table.add_column("measured", justify="right", overflow="fold")
    for layer in report.layers:
        cells = [
            layer.name,
            sides(layer.shape),
            str(layer.rows),
            found(layer),
            f"{layer.density:.1%}",
            form(layer),
            f"{quantity(layer.dense_flops)} > {quantity(layer.flops)}",
            f"{quantity(layer.dense_bytes)} > {quantity(layer.bytes)}",
            duration(layer.dense_seconds),
            duration(layer.expected_seconds),
        ]
        if measured:
            cells.append(duration(layer.measured_seconds))
        # Text, because names from a file are not markup.
        table.add_row(*(Text(cell) for cell in cells))
    return table


def kernel_table(calls: Sequence[tuple[str, float]]) -> Table:
    """Where the time of a call goes: kernels by symbol, slowest first."""
    total = sum(seconds for _, seconds in calls) or 1.0
    by_symbol: dict[str, list[float]] = {}
    for symbol, seconds in calls:
        by_symbol.setdefault(symbol, []).append(seconds)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kernel", overflow="fold")
    for name in ("calls", "time", "share"):
        table.add_column(name, justify="right")
    for symbol, times in sorted(by_symbol.items(), key=lambda entry: -sum(entry[1])):
        share = f"{sum(times) / total:.1%}"
        table.add_row(Text(symbol), str(len(times)), duration(sum(times)), share)
    return table


def found(layer: LayerReport) -> str:
    """What the weight was recognised as, such as ``block 16x16``."""
    block = f" {sides(layer.trained_block)}" if layer.trained_block else ""
    rank = f" r={layer.rank}" if layer.rank else ""
    return f"{layer.found}{block}{rank}"


def form(layer: LayerReport) -> str:
    """What runs, such as ``block_sparse 16x16 bfloat16``."""
    block = f" {sides(layer.block)}" if layer.block else ""
    dtype = f" {layer.dtype}" if layer.dtype != "float32" else ""
    return f"{layer.form}{block}{dtype}"


def sides(pair: tuple[int, int]) -> str:
    """``16x32``."""
    return f"{pair[0]}x{pair[1]}"


def quantity(value: float) -> str:
    """A number with three digits and a unit prefix, such as ``4.72M``."""
    for size, letter in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """A time with three digits and its unit, such as ``41.5 us``."""
    if seconds is None:
        return "?"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _totals(report: Report) -> Text:
    totals = report.totals()
    parts = [
        f"{len(report.layers)} layers ({report.tuned})",
        f"FLOP {quantity(totals['dense_flops'])} > {quantity(totals['flops'])}",
        f"bytes {quantity(totals['dense_bytes'])} > {quantity(totals['bytes'])}",
        f"expected {duration(totals['dense_seconds'])} > {duration(totals['expected_seconds'])}",
    ]
    times = [layer.measured_seconds for layer in report.layers]
    if all(time is not None for time in times):
        parts.append(f"measured {duration(sum(time for time in times if time is not None))}")
    return Text("total: " + ", ".join(parts), style="bold")


def _by_rows(report: Report) -> Iterator[RenderableType]:
    """What runs for how many rows, where these are symbolic: expected times, dense beside."""
    layers = [layer for layer in report.layers if layer.buckets]
    if not layers:
        return
    yield Text("\nBy rows", style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("  layer", overflow="fold")
    for name in ("rows", "planned for", "runs as", "kernel", "dense", "expected"):
        table.add_column(name, justify="right", overflow="fold")
    shown: dict[tuple[BucketReport, ...], list[str]] = {}
    for layer in layers:
        shown.setdefault(layer.buckets, []).append(layer.name)
    for buckets, names in shown.items():
        first = 1
        for bucket in buckets:
            span = f"{first} to {bucket.up_to}" if bucket.up_to else f"{first} and more"
            if bucket.up_to == first:
                span = str(first)
            block = f" {sides(bucket.block)}" if bucket.block else ""
            cells = [
                f"  {', '.join(names)}" if bucket is buckets[0] else "",
                span,
                str(bucket.rows),
                f"{bucket.form}{block}",
                f"{bucket.template} ({bucket.config})",
                duration(bucket.dense_seconds),
                duration(bucket.expected_seconds) + (", tuned" if bucket.tuned else ""),
            ]
            table.add_row(*(Text(cell) for cell in cells))
            first = (bucket.up_to or 0) + 1
    yield table


def _reasons(report: Report) -> Iterator[RenderableType]:
    """Equal reasons once, with the layers that they are for."""
    by_reason: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.reason:
            by_reason.setdefault(layer.reason, []).append(layer.name)
    if by_reason:
        yield Text("\nWhy", style="bold")
    for reason, names in by_reason.items():
        yield Text(f"  {', '.join(names)}: {reason}")


def _partition(report: Report) -> Iterator[RenderableType]:
    """Which part of the machine runs what, where it has several."""
    if report.partition:
        yield Text("\nWhere", style="bold")
    for part, what in report.partition:
        yield Text(f"  {part}: {what}")


def _notes(report: Report, with_applied: bool) -> Iterator[RenderableType]:
    """Equal notes once, with the layers that they are for; what is not shown is counted."""
    shown: dict[tuple[str, str], list[str]] = {}
    hidden: Counter[str] = Counter()
    for note in report.notes:
        if with_applied or not note.applied:
            text = note.text if note.applied else f"refused, {note.text}"
            shown.setdefault((note.pass_name, text), []).append(note.layer)
        else:
            hidden[note.pass_name] += 1
    if shown:
        yield Text("\nPasses", style="bold")
    for (pass_name, text), layers in shown.items():
        yield Text(f"  {pass_name}: {', '.join(layers)}: {text}")
    if hidden:
        counts = ", ".join(f"{name} {count}" for name, count in hidden.items())
        yield Text(f"\nApplied (every one with -v): {counts}")

"""What a tuning found, as one HTML page that needs nothing else: no scripts, nothing to load."""

from __future__ import annotations

from html import escape

from bscompile.report.svg import Plot, Scale, heat_map, spanning
from bscompile.report.tables import duration, quantity, sides
from bscompile.targets.base import HardwareSpec
from bscompile.tuning.summary import LayerSummary, Point, TuningResult

_STYLE = """
:root { color-scheme: light dark; --ink: #1d232b; --soft: #5c6673; --line: #d9dee4;
  --paper: #ffffff; --card: #f6f8fa; --sparse: #1f6fd0; --kron: #c2571a; --dense: #6b7480;
  --band: #f3e3b5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa4b1; --line: #363d47;
  --paper: #14181d; --card: #1c2128; --sparse: #5fa3f0; --kron: #ee9055; --dense: #9aa4b1;
  --band: #4a4020; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 0 auto; padding: 24px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 13px; font-weight: 600; color: var(--soft); margin: 8px 0 2px; }
p, details { margin: 4px 0 12px; color: var(--soft); overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 9em; }
th { color: var(--soft); font-weight: 600; } a { color: inherit; }
section { background: var(--card); border-radius: 8px; padding: 16px 20px; margin: 20px 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 8px 24px; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--soft); }
svg text.note { fill: var(--ink);
  paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg.map { max-width: 100%; border: 1px solid var(--line);
  fill: var(--sparse); }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--soft); fill: none; }
.line { fill: none; stroke-width: 2; } .band { fill: var(--band); }
.line.best { stroke: var(--ink); }
.line.limit { stroke: var(--soft); stroke-width: 1.5; }
.dot { stroke: var(--card); stroke-width: 1; }
.block_sparse { stroke: var(--sparse); }
.dot.block_sparse { fill: var(--sparse); stroke: var(--card); }
.kronecker { stroke: var(--kron); } .dot.kronecker { fill: var(--kron); stroke: var(--card); }
.dense { stroke: var(--dense); } .line.dense { stroke-dasharray: 5 4; }
.dot.dense { fill: var(--dense); stroke: var(--card); }
.dot.expected { fill: none; stroke-width: 1.5; }
.dot.expected.block_sparse { stroke: var(--sparse); }
.dot.expected.kronecker { stroke: var(--kron); } .dot.expected.dense { stroke: var(--dense); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 5px;
  margin: 0 4px 0 12px; }
"""


def tuning_page(result: TuningResult, hardware: HardwareSpec) -> str:
    """The whole page.

    Args:
        result: What was found.
        hardware: The machine that it was found on.
    """
    machine = f"{hardware.name}, {hardware.isa}, {hardware.cores} threads"
    body = "".join(_section(number, layer, hardware) for number, layer in enumerate(result.layers))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Tuning report</title><style>{_STYLE}</style></head><body>"
        f"<h1>Tuning report</h1><p>{escape(machine)}. {escape(result.headline)}.</p>"
        f"{_whole(result)}"
        f"{_overview(result)}{_orders(result)}{body}</body></html>\n"
    )


def _whole(result: TuningResult) -> str:
    """What became of the model as a whole, and where it loses."""
    sentences = [] if result.whole is None else [result.whole.verdict]
    if result.counts:
        sentences.append(f"Times are no times here: they count {result.counts}")
    if result.losses:
        sentences.append(f"no form is as fast as dense for {', '.join(result.losses)}")
    return "".join(f"<p><strong>{escape(sentence)}.</strong></p>" for sentence in sentences)


def _orders(result: TuningResult) -> str:
    """Which order hidden features take, what each took; the blocks of each layer on demand."""
    if not result.orders:
        return ""
    told = []
    for order in result.orders:
        said, _, blocks = order.partition("; execution blocks: ")
        rows = "".join(f"<li>{escape(block)}</li>" for block in blocks.split("; ") if block)
        more = f"<details><summary>execution blocks</summary><ul>{rows}</ul></details>"
        told.append(f"<p>{escape(said)}.</p>{more if rows else ''}")
    return f"<section><h2>Order of hidden features</h2>{''.join(told)}</section>"


def _overview(result: TuningResult) -> str:
    rows = "".join(
        _row(
            f'<a href="#layer{number}">{escape(layer.name)}</a>',
            str(layer.uses),
            sides(layer.shape),
            str(layer.rows),
            f"{layer.found} {sides(layer.trained_block)}" if layer.found != "dense" else "dense",
            f"{layer.density:.0%}",
            layer.winner or "not tuned",
            duration(layer.seconds),
            _times(layer.dense_seconds, layer.seconds),
            _times(layer.model_seconds, layer.seconds),
            "?" if layer.roofline is None else f"{layer.roofline:.0%}",
        )
        for number, layer in enumerate(result.layers)
    )
    heads = ("layer", "uses", "out x in", "rows", "found", "live", "runs as", "time",
             "against dense", "against cost model", "roofline")  # fmt: skip
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _row(*cells: str) -> str:
    first, *rest = cells
    return f"<tr><td>{first}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"


def _times(other: float | None, own: float | None) -> str:
    return "?" if other is None or own is None else f"{other / own:.2f} x"


def _section(number: int, layer: LayerSummary, hardware: HardwareSpec) -> str:
    failed = {status: n for status, n in layer.statuses.items() if status != "ok"}
    troubles = "".join(f", {n} {status}" for status, n in failed.items())
    head = (
        f'<section id="layer{number}"><h2>{escape(layer.name)}, {layer.rows} rows</h2>'
        f"<p>{sides(layer.shape)}. Runs as {escape(layer.config or '?')}. "
        f"{sum(layer.statuses.values())} candidates measured{troubles}.</p>"
    )
    if not layer.curve:
        return f"{head}<p>No candidate gave right results.</p></section>"
    parts = [("Convergence", _convergence(layer))]
    if layer.roofline is not None:  # what only counts something has none
        parts.append(("Roofline", _roofline(layer, hardware)))
    if layer.found != "dense":
        parts.insert(0, ("Latency by execution block", _curve(layer)))
        name = f"Live blocks, {layer.density:.1%} of {sides(layer.trained_block)}"
        parts.append((name, heat_map(layer.sparsity, name)))
    plots = "".join(f"<div><h3>{escape(name)}</h3>{plot}</div>" for name, plot in parts if plot)
    return f'{head}{_legend(layer)}<div class="plots">{plots}</div></section>'


def _legend(layer: LayerSummary) -> str:
    names = {"block_sparse": "block-sparse", "kronecker": "factorized", "dense": "dense"}
    colours = {"block_sparse": "sparse", "kronecker": "kron", "dense": "dense"}
    present = [form for form in names if any(point.form == form for point in layer.curve)]
    keys = "".join(
        f'<span class="key" style="background:var(--{colours[form]})"></span>{names[form]}'
        for form in present
    )
    ring = "<span style='margin-left:12px'>ring: what the cost model expected</span>"
    return f"<p>{keys}{'' if layer.found == 'dense' else ring}</p>"


def _curve(layer: LayerSummary) -> str:
    """Microseconds against execution block, by the block's area."""
    points = layer.curve
    dense = [p for p in points if p.form == "dense"]
    shown = [p for p in points if p.form != "dense"]
    if not shown:
        return ""
    blocks = sorted({p.block for p in shown}, key=lambda b: (b[0] * b[1], b))
    place = {block: float(index) for index, block in enumerate(blocks)}
    times = [t * 1e6 for p in points for t in (p.seconds, p.expected) if t > 0]
    plot = Plot(Scale(-0.6, len(blocks) - 0.4), spanning(times, log=True))
    plot.axes("execution block", "microseconds", [(place[b], sides(b)) for b in blocks])
    for point in dense:
        ends = [(-0.6, point.seconds * 1e6), (len(blocks) - 0.4, point.seconds * 1e6)]
        plot.line(ends, "dense")
        x, y = plot.at(*ends[0])
        plot.text(x + 4, y - 5, f"dense {duration(point.seconds)}")
    for form in ("block_sparse", "kronecker"):
        path = [(place[p.block], p.seconds * 1e6) for p in shown if p.form == form]
        if len(path) > 1:
            plot.line(sorted(path), form)
    for p in shown:
        tip = f"{p.label}: {duration(p.seconds)} measured, {duration(p.expected)} expected"
        if p.expected > 0:
            plot.dot(place[p.block], p.expected * 1e6, f"expected {p.form}", tip, 3.5)
        plot.dot(place[p.block], p.seconds * 1e6, p.form, tip)
        if p.label == layer.winner:
            x, y = plot.at(place[p.block], p.seconds * 1e6)
            room_below = y + 24 < plot.at(0, plot.y.low)[1]
            plot.text(x, y + (19 if room_below else -10), "chosen", "middle", "note")
    if layer.trained_block in place:
        plot.band(place[layer.trained_block], "trained block")
    return plot.svg(f"latency of {layer.name} by execution block")


def _convergence(layer: LayerSummary) -> str:
    """Each trial, and the best so far."""
    done = [(i, time * 1e6) for i, time in enumerate(layer.trials, 1) if time is not None]
    if not done:
        return ""
    best, lowest = [], float("inf")
    for i, time in done:
        lowest = min(lowest, time)
        best.append((float(i), lowest))
    count = len(layer.trials)
    best.append((float(count), lowest))
    plot = Plot(Scale(0.5, count + 0.5), spanning([time for _, time in done], log=True))
    step = max(1, -(-count // 8))
    plot.axes("trial", "microseconds", [(i, str(i)) for i in range(1, count + 1, step)])
    plot.line(best, "best", steps=True)
    for i, time in done:
        plot.dot(i, time, "dense", f"trial {i}: {duration(time / 1e6)}", 3)
    return plot.svg(f"convergence of {layer.name}")


def _roofline(layer: LayerSummary, hardware: HardwareSpec) -> str:
    """GFLOP/s against FLOP per byte, under what arithmetic and memory allow."""
    peak = hardware.peak_gflops[layer.precision] * hardware.cores
    roofs = {"memory": hardware.memory_rate(hardware.cores)}
    roofs["last cache"] = max(roofs["memory"], hardware.cache_gbps[-1] * hardware.cores)
    reached = [(p, p.flops / p.bytes, p.flops / p.seconds / 1e9) for p in layer.curve if p.flops]
    if not reached:
        return ""
    ridge = peak / roofs["memory"]
    intensities = [intensity for _, intensity, _ in reached] + [ridge, peak / roofs["last cache"]]
    x = spanning(intensities, log=True, margin=0.15)
    rates = [rate for _, _, rate in reached] + [peak]
    lowest = min(min(rates), roofs["memory"] * x.low)
    plot = Plot(x, spanning([lowest, *rates], log=True, margin=0.1))
    plot.axes("FLOP per byte", "GFLOP/s", [(v, f"{v:.3g}") for v in x.ticks()])
    for name, rate in roofs.items():
        bend = min(max(peak / rate, x.low), x.high)
        plot.line([(x.low, min(rate * x.low, peak)), (bend, peak), (x.high, peak)], "limit")
        px, py = plot.at(bend, peak)
        words = f"{name}, {quantity(rate * 1e9)}B/s"
        if px < 0.7 * plot.width:
            plot.text(px + 8, py + 14, words)
        else:  # under the roof's end, left of the slope's
            plot.text(px - 14, py + 14, words, "end")
    px, py = plot.at(x.high, peak)
    plot.text(px, py - 5, f"{layer.precision} peak {peak:.0f} GFLOP/s", "end")
    for point, intensity, rate in reached:
        plot.dot(intensity, rate, point.form, _tip(point, rate))
    return plot.svg(f"roofline of {layer.name}")


def _tip(point: Point, rate: float) -> str:
    return f"{point.label}: {rate:.0f} GFLOP/s, {duration(point.seconds)}"

"""``bscompile tune MODEL.onnx``: measure what each layer runs fastest in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bscompile.cli.plan import Plan, plan_options
from bscompile.cli.talk import Talk, talk_options

if TYPE_CHECKING:
    from rich.table import Table

    from bscompile.tuning.session import Progress
    from bscompile.tuning.summary import LayerSummary


@click.command(name="tune")
@click.argument("model", type=click.Path(path_type=Path))
@plan_options
@click.option(
    "--trials",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    metavar="N",
    help="Candidates of each distinct layer.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Stop after S seconds with what was found.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Candidates built at once; with --rpc devices used at once.",
)
@click.option(
    "--db",
    "database",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Tuning database; in the user's data folder by default.",
)
@click.option(
    "--merge",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="PATH",
    help="Take over the records of another database or artifact first.",
)
@click.option("--rpc", metavar="HOST:PORT", help="Measure behind this TVM RPC tracker.")
@click.option("--key", metavar="K", help="Key under which the tracker lends the devices.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OUT.html",
    help="Write a page with curves, roofline and sparsity maps.",
)
@talk_options
def command(
    talk: Talk,
    model: Path,
    plan: Plan,
    trials: int,
    timeout: float | None,
    jobs: int,
    database: Path | None,
    merge: tuple[Path, ...],
    rpc: str | None,
    key: str | None,
    report: Path | None,
) -> None:
    """Measure what each layer of an ONNX model runs fastest in.

    The results go into a database that bscompile build asks. Ctrl-C keeps everything found.
    """
    from bscompile.api import tune

    with talk.phases() as progress:
        result = tune(
            model,
            trials=trials,
            timeout=timeout,
            jobs=jobs,
            database=database,
            merge=merge,
            rpc=rpc,
            device=key,
            **plan.options(),
            report=report,
            progress=progress,
            watch=watcher(talk, progress),
        )
    if talk.json:
        talk.give(result.to_dict())
        return
    for line in result.damaged:
        talk.say(line)
    talk.show(outcome_table(result.layers))
    for line in result.orders:
        talk.say(line)
    talk.say(f"{result.headline}; database: {result.database}")
    if result.counts:
        talk.say(f"times are no times: they count {result.counts}")
    if result.losses:
        talk.say(f"no form found that is as fast as dense for: {', '.join(result.losses)}")
    if result.whole is not None:
        talk.say(result.whole.verdict)
    if report is not None:
        click.echo(report)


def watcher(talk: Talk, progress: Callable[[str], None]) -> Callable[[Progress], None]:
    """Tell how the tuning goes: every candidate on a terminal, every layer elsewhere."""
    live = talk.level == 0 and sys.stderr.isatty()

    def watch(state: Progress) -> None:
        if live:
            progress(progress_line(state))
        elif state.trial == state.trials:
            talk.say(progress_line(state))

    return watch


def progress_line(state: Progress) -> str:
    """One line, such as ``tuning 3/48 fc1: 12/32, best 41 us (dense ...), 38 % of roofline``."""
    from bscompile.report.tables import duration

    parts = [f"tuning {state.number}/{state.total} {state.layer}: {state.trial}/{state.trials}"]
    if state.best is not None:
        parts.append(f"best {duration(state.best.time)} {state.best.variant.label}")
    if state.roofline is not None:
        parts.append(f"{state.roofline:.0%} of roofline")
    if state.seconds_left is not None:
        parts.append(f"{clock(state.seconds_left)} left")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """``4:05``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def outcome_table(layers: tuple[LayerSummary, ...]) -> Table:
    """One row for each distinct layer."""
    from rich.table import Table
    from rich.text import Text

    from bscompile.report.tables import duration, sides

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    names = ("uses", "out x in", "rows", "found", "runs as", "time", "dense", "cost model's",
             "roofline", "tried", "failed")  # fmt: skip
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for layer in layers:
        tried = sum(layer.statuses.values())
        block = "" if layer.found == "dense" else f" {sides(layer.trained_block)}"
        cells = [
            layer.name,
            str(layer.uses),
            sides(layer.shape),
            str(layer.rows),
            f"{layer.found}{block}",
            layer.winner or "not tuned",
            duration(layer.seconds),
            duration(layer.dense_seconds),
            duration(layer.model_seconds),
            "?" if layer.roofline is None else f"{layer.roofline:.0%}",
            str(tried),
            str(tried - layer.statuses.get("ok", 0)),
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table

"""``bscompile estimate``: how fast would a layer be, before anyone trains it?"""

from __future__ import annotations

import re
from contextlib import closing

import click

from bscompile.cli.plan import dtype_option, layer_rows_option, target_option
from bscompile.cli.talk import Talk, talk_options, threads_option
from bscompile.errors import UsageError


@click.command(name="estimate")
@click.option("--shape", required=True, metavar="OUTxIN", help="Of the weight, such as 3072x768.")
@click.option("--block", required=True, metavar="HxW", help="Trained block, such as 8x8.")
@click.option(
    "--rank",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="R",
    help="Kronecker terms of a factorized layer; 0 for a block-sparse one.",
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    metavar="D",
    help="Share of live blocks.",
)
@layer_rows_option("Rows of x")
@target_option("Where it would run")
@dtype_option
@click.option("--measure", is_flag=True, help="Build the kernels and time them.")
@threads_option
@talk_options
def command(
    talk: Talk,
    shape: str,
    block: str,
    rank: int,
    density: float,
    rows: int,
    target: str,
    dtype: str,
    measure: bool,
    threads: int | None,
) -> None:
    """Say how fast a layer would be, before anyone trains it.

    From the target's cost model, or measured with random weights. A bias is counted.
    """
    sides, tile = parse_sides("--shape", shape), parse_sides("--block", block)
    from bscompile import targets
    from bscompile.dialect.precision import precision_named
    from bscompile.tuning.estimate import break_even, estimate, measuring, random_weight

    with talk.phases() as progress:
        weight = random_weight(sides, tile, density, rank)
        progress(f"looking at target {target}")
        context = targets.resolve(target, threads)
        precision = precision_named(dtype)
        if measure:
            with closing(measuring()) as measurer:
                found = estimate(
                    *(weight, rows, context),
                    precision=precision,
                    measurer=measurer,
                    progress=progress,
                )
        else:
            found = estimate(weight, rows, context, precision=precision)
        limit = break_even(weight, rows, context, precision)
    machine = f"{context.hardware.name}, {context.hardware.isa}, {context.hardware.cores} threads"
    if talk.json:
        forms = [entry.to_dict() for entry in found]
        talk.give({"machine": machine, "rows": rows, "break_even_density": limit, "forms": forms})
        return
    from rich.table import Table
    from rich.text import Text

    from bscompile.report.tables import duration, quantity

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("form", overflow="fold")
    measured = ("measured",) if measure else ()
    for name in ("FLOP", "bytes", "expected", *measured, "x dense", "roofline"):
        table.add_column(name, justify="right")
    table.add_column("kernel", overflow="fold")
    for entry in found:
        cells = [entry.label, quantity(entry.flops), quantity(entry.bytes)]
        cells += [duration(entry.expected)] + ([duration(entry.measured)] if measure else [])
        cells += [f"{entry.speedup:.2f}", f"{entry.roofline:.0%}", entry.config]
        table.add_row(*(Text(cell) for cell in cells))
    talk.show(table)
    best = found[0]
    click.echo(f"best: {best.label}, {best.speedup:.2f} times as fast as dense")
    click.echo(f"break-even with dense: about {limit:.0%} of the blocks live, by the cost model")
    talk.say(machine)


def parse_sides(option: str, text: str) -> tuple[int, int]:
    """``3072x768`` -> (3072, 768).

    Raises:
        UsageError: not of that form.
    """
    match = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,6})", text, re.ASCII)
    if match is None:
        raise UsageError(f"{option} {text}: two positive numbers are wanted, such as 8x8")
    return int(match[1]), int(match[2])

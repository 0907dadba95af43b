"""``bscompile inspect FILE``: what happens to each layer, and why."""

from __future__ import annotations

from pathlib import Path

import click

from bscompile.cli.talk import (
    Talk,
    check_target,
    dims_option,
    parse_dims,
    talk_options,
    threads_option,
)


@click.command(name="inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    metavar="NAME[:VARIANT]",
    help="What to plan for; an artifact keeps its own.",
)
@click.option("--measure", is_flag=True, help="Run an artifact and time each layer.")
@click.option(
    "--typical-rows",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="N",
    help="Rows to plan for where the model leaves them open.",
)
@dims_option
@threads_option
@talk_options
def command(
    talk: Talk,
    file: Path,
    target: str,
    measure: bool,
    typical_rows: int,
    dims: tuple[str, ...],
    threads: int | None,
) -> None:
    """Show what happens to each layer, and why.

    FILE is an ONNX model or an artifact, told apart by their content. Of a model it is what
    would be built.
    """
    check_target(target)
    lengths = parse_dims(dims)
    from bscompile.api import inspect, is_artifact
    from bscompile.errors import UsageError
    from bscompile.files import check_readable

    check_readable(file)
    if measure and not is_artifact(file):
        raise UsageError(f"--measure: {file} is not an artifact", hint="build it first")
    calls: list[tuple[str, float]] = []
    with talk.phases() as progress:
        if measure:
            from bscompile.benchmark import measure_layers

            progress("measuring")
            report, calls = measure_layers(file, lengths=lengths, threads=threads)
        else:
            report = inspect(
                file, target, threads=threads, typical_rows=typical_rows, progress=progress
            )
    if talk.json:
        kernels = [{"kernel": symbol, "seconds": seconds} for symbol, seconds in calls]
        talk.give({**report.to_dict(), "kernels": kernels})
        return
    from bscompile.report.tables import kernel_table, report_view

    talk.show(report_view(report, notes=talk.level > 0))
    if calls:
        talk.show(kernel_table(calls))

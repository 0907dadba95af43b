"""``bscompile inspect FILE``: what happens to each layer, and why."""

from __future__ import annotations

from pathlib import Path

import click

from bscompile.cli.plan import Plan, plan_options
from bscompile.cli.talk import Talk, talk_options


@click.command(name="inspect")
@click.argument("file", type=click.Path(path_type=Path))
@plan_options
@click.option("--measure", is_flag=True, help="Run an artifact and time each layer.")
@talk_options
def command(
    talk: Talk,
    file: Path,
    plan: Plan,
    measure: bool,
) -> None:
    """Show what happens to each layer, and why.

    FILE is an ONNX model or an artifact, told apart by their content. Of a model it is what
    would be built.
    """
    from bscompile.api import inspect, is_artifact
    from bscompile.errors import UsageError
    from bscompile.files import check_readable

    check_readable(file)
    if measure and not is_artifact(file):
        raise UsageError(f"--measure: {file} is not an artifact", hint="build it first")
    calls: list[tuple[str, float]] = []
    remark = ""
    with talk.phases() as progress:
        if measure:
            from bscompile.benchmark import measure_layers

            progress("measuring")
            lengths, threads = plan.dimensions, plan.threads
            report, calls, remark = measure_layers(file, lengths=lengths, threads=threads)
        else:
            report = inspect(file, progress=progress, **plan.options())
    if talk.json:
        kernels = [{"kernel": symbol, "seconds": seconds} for symbol, seconds in calls]
        talk.give({**report.to_dict(), "kernels": kernels, "remark": remark})
        return
    from bscompile.report.tables import kernel_table, report_view

    talk.show(report_view(report, notes=talk.level > 0))
    if calls:
        talk.show(kernel_table(calls))
        talk.say_how("", remark)

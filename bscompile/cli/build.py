"""``bscompile build MODEL.onnx``: compile a model into an artifact."""

from __future__ import annotations

from pathlib import Path

import click

from bscompile.cli.plan import Plan, plan_options
from bscompile.cli.talk import Talk, talk_options
from bscompile.cli.time_left import BUILD_SHARES
from bscompile.errors import UsageError


@click.command(name="build")
@click.argument("model", type=click.Path(path_type=Path))
@plan_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT.bsc",
    help="Where to write; beside the model by default.",
)
@click.option(
    "--dump-ir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Save the model after every pass.",
)
@click.option("--tune", "tune_first", is_flag=True, help="First tune what was never tuned here.")
@click.option(
    "--db",
    "database",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Tuning database; in the user's data folder by default.",
)
@click.option("--key", metavar="K", help="Build for the device tuned under this RPC key.")
@talk_options
def command(
    talk: Talk,
    model: Path,
    plan: Plan,
    output: Path | None,
    dump_ir: Path | None,
    tune_first: bool,
    database: Path | None,
    key: str | None,
) -> None:
    """Compile an ONNX model into an artifact.

    Prints the artifact's path; what became of each layer is told on stderr.
    """
    goal = output or model.with_suffix(".bsc")
    _check_files(model, goal)
    from bscompile.api import build, tune

    with talk.phases(BUILD_SHARES) as progress:
        if tune_first:
            if key is not None:
                raise UsageError("--tune measures on this machine", "use bscompile tune --rpc")
            from bscompile.cli.tune import watcher

            result = tune(
                model,
                database=database,
                progress=progress,
                watch=watcher(talk, progress),
                **plan.options(),
            )
            talk.say(result.headline)
        compiled = build(
            model,
            dump_ir=dump_ir,
            database=database,
            device=key,
            progress=progress,
            **plan.options(),
        )
        progress("writing the artifact")
        compiled.save(goal)
    if talk.json:
        from bscompile.files import sha256_of

        talk.give(
            {
                "artifact": str(goal),
                "bytes": goal.stat().st_size,
                "sha256": sha256_of(goal),
                "report": compiled.report.to_dict(),
            }
        )
        return
    if talk.level >= 0:
        from bscompile.report.tables import report_view

        talk.say(report_view(compiled.report, notes=talk.level > 0))
    click.echo(goal)


def _check_files(model: Path, goal: Path) -> None:
    """Refuse in the first moment what would otherwise fail after imports or the whole build."""
    from bscompile.files import check_readable, check_writable

    check_readable(model)
    if goal.exists() and goal.samefile(model):
        raise UsageError(f"{goal}: the artifact would replace the model", hint="use another -o")
    check_writable(goal)

"""``bscompile build MODEL.onnx``: compile a model into an artifact."""

from __future__ import annotations

from pathlib import Path

import click

from bscompile.cli.talk import Talk, check_target, talk_options, threads_option
from bscompile.errors import UsageError


@click.command(name="build")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    metavar="NAME[:VARIANT]",
    help="What to compile for; see bscompile targets.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT.bsc",
    help="Where to write; beside the model by default.",
)
@threads_option
@click.option(
    "--typical-rows",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="N",
    help="Rows to plan for where the model leaves them open.",
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
    target: str,
    output: Path | None,
    threads: int | None,
    typical_rows: int,
    dump_ir: Path | None,
    tune_first: bool,
    database: Path | None,
    key: str | None,
) -> None:
    """Compile an ONNX model into an artifact.

    Prints the artifact's path; what became of each layer is told on stderr.
    """
    check_target(target)
    goal = output or model.with_suffix(".bsc")
    _check_files(model, goal)
    from bscompile.api import build, tune

    with talk.phases() as progress:
        if tune_first:
            if key is not None:
                raise UsageError("--tune measures on this machine", "use bscompile tune --rpc")
            from bscompile.cli.tune import watcher

            result = tune(
                model,
                target,
                database=database,
                threads=threads,
                typical_rows=typical_rows,
                progress=progress,
                watch=watcher(talk, progress),
            )
            talk.say(result.headline)
        compiled = build(
            model,
            target,
            threads=threads,
            typical_rows=typical_rows,
            dump_ir=dump_ir,
            database=database,
            device=key,
            progress=progress,
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

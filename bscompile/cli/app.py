"""The parser: a group whose commands are imported when they are called."""

from __future__ import annotations

import importlib

import click

from bscompile.errors import did_you_mean

#: Command -> what it does. A new command is one line here and one file of its name.
COMMANDS = {
    "build": "Compile an ONNX model into an artifact.",
    "run": "Run an artifact on arrays from .npy and .npz files.",
    "verify": "Compare an artifact with its ONNX model in onnxruntime.",
    "bench": "Time an artifact, and onnxruntime beside it.",
    "inspect": "Show what happens to each layer, and why.",
    "train": "Train a factorized block-sparse model and write it as ONNX.",
    "export": "Write an artifact in the form that another world takes it in.",
    "tune": "Measure what each layer of a model runs fastest in.",
    "estimate": "Say how fast a layer would be, before anyone trains it.",
    "targets": "Show what this machine has and what each target needs.",
}


class LazyGroup(click.Group):
    """Knows its commands' names and summaries; imports one only to run it or to show its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's file."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"bscompile.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name what exists where a name is unknown."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"no command {name!r}; {did_you_mean(name, COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the summaries without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        import bscompile

        click.echo(f"bscompile {bscompile.__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
    help="Show the version and exit.",
)  # fmt: skip
def app() -> None:
    """Compile neural networks with block-sparse and factorized weights for one machine.

    \b
        bscompile build model.onnx -o model.bsc
        bscompile verify model.bsc model.onnx
        bscompile run model.bsc --input x.npy
    """  # noqa: D301 - a backspace is click's mark for lines not to be joined

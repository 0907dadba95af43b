"""``bscompile export OUT.bsc DIR``: an artifact in the form that another world takes it in."""

from __future__ import annotations

from pathlib import Path

import click

from bscompile.cli.talk import Talk, talk_options
from bscompile.export import FORMATS, ExportOptions, export


@click.command(name="export")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    required=True,
    help="; ".join(f"{name}: {form.summary}" for name, form in FORMATS.items()) + ".",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]FILE",
    help="The sample that comes with it, from .npy or .npz files; random by default.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="MODEL.onnx",
    help="Add onnxruntime's answer to the sample, to compare with.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Names of the classes, one line each.",
)
@talk_options
def command(
    talk: Talk,
    artifact: Path,
    folder: Path,
    form: str,
    inputs: tuple[str, ...],
    against: Path | None,
    labels: Path | None,
) -> None:
    """Write an artifact in the form that another world takes it in.

    DIR appears when it is complete; an earlier export of that name is replaced.
    """
    from bscompile.arrays import read_inputs
    from bscompile.artifact import read_artifact

    with talk.phases() as progress:
        arrays = None
        if inputs:
            manifest = read_artifact(artifact, weights=False).manifest
            arrays = read_inputs(inputs, [spec.name for spec in manifest.inputs])
        first = export(artifact, folder, form, ExportOptions(arrays, against, labels), progress)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if talk.json:
        talk.give({"format": form, "folder": str(folder), "open": str(first), "bytes": size})
        return
    click.echo(f"{first}: {size / 2**20:.2f} MiB in the folder")
    if form == "web":
        talk.say(f"to see it: python3 -m http.server -d {folder} 8000, then open localhost:8000")

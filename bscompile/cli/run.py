"""``bscompile run OUT.bsc``: run an artifact on arrays from files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bscompile.cli.talk import Talk, talk_options, threads_option

if TYPE_CHECKING:
    from bscompile.arrays import Array


@click.command(name="run")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]FILE",
    help="An array from a .npy file; a .npz file gives every input that it names.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for the outputs, one .npy file each.",
)
@threads_option
@talk_options
def command(
    talk: Talk,
    artifact: Path,
    inputs: tuple[str, ...],
    output: Path | None,
    threads: int | None,
) -> None:
    """Run an artifact on arrays from .npy and .npz files.

    NAME= may be left out where the model has one input. Without --output only a summary of the
    results is printed.
    """
    from bscompile import runtime
    from bscompile.arrays import read_inputs, write_outputs

    with talk.phases() as progress:
        progress("loading")
        model = runtime.load(artifact, threads=threads)
        arrays = read_inputs(inputs, [spec.name for spec in model.inputs])
        progress("running")
        begun = time.perf_counter()
        results = model.run(arrays)
        seconds = time.perf_counter() - begun
        files = {} if output is None else write_outputs(output, results)
    if talk.json:
        talk.give(
            {
                "outputs": [
                    {
                        "name": name,
                        "dtype": array.dtype.name,
                        "shape": list(array.shape),
                        **_extent(array),
                        "file": str(files[name]) if name in files else None,
                    }
                    for name, array in results.items()
                ],
                "seconds": seconds,
                "stand_in": model.stand_in,
                "remark": model.remark,
            }
        )
        return
    talk.say_how(model.stand_in, model.remark)
    for name, array in results.items():
        low, high = _extent(array).values()
        extent = "" if low is None else f" {low:.6g} to {high:.6g}"
        where = f" -> {files[name]}" if name in files else ""
        click.echo(f"{name}: {array.dtype}[{', '.join(map(str, array.shape))}]{extent}{where}")


def _extent(array: Array) -> dict[str, float | None]:
    """Smallest and largest value; None where there is none that JSON could hold."""
    import numpy as np

    finite = array[np.isfinite(array)]
    if not finite.size:
        return {"min": None, "max": None}
    return {"min": float(finite.min()), "max": float(finite.max())}

"""``bscompile verify OUT.bsc MODEL.onnx``: are the results right?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bscompile.cli.talk import Talk, dims_option, parse_dims, talk_options, threads_option

if TYPE_CHECKING:
    from bscompile.verification import Comparison


@click.command(name="verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Random inputs to try.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="S", help="Of the inputs.")
@dims_option
@threads_option
@talk_options
def command(
    talk: Talk,
    artifact: Path,
    model: Path,
    samples: int,
    seed: int,
    dims: tuple[str, ...],
    threads: int | None,
) -> int:
    """Compare an artifact with its ONNX model in onnxruntime.

    Exit code 0 where every output of every sample is within the tolerance, else 1.
    """
    lengths = parse_dims(dims)
    from bscompile.verification import verify

    with talk.phases() as progress:
        result = verify(
            artifact,
            model,
            samples=samples,
            seed=seed,
            lengths=lengths,
            threads=threads,
            progress=progress,
        )
    if talk.json:
        talk.give(result.to_dict())
        return 0 if result.passed else 1
    talk.say_how(result.stand_in)
    for line in result.skipped:
        talk.say(f"skipped {line}")
    shown = result.comparisons if talk.level > 0 else [result.worst]
    for entry in shown:
        click.echo(_line(entry, "" if talk.level > 0 else "worst: "))
    if result.lost:
        click.echo(result.lost)
    click.echo(f"tolerance: {result.formula}")
    failed = sum(not entry.passed for entry in result.comparisons)
    total = len(result.comparisons)
    click.echo(f"FAILED, {failed} of {total} outputs" if failed else f"passed, {total} outputs")
    return 1 if failed else 0


def _line(entry: Comparison, head: str) -> str:
    sizes = "".join(f", {name}={length}" for name, length in entry.lengths.items())
    verdict = "" if entry.passed else "  WRONG"
    return (
        f"{head}{entry.output} at {list(entry.index)}, sample {entry.sample}{sizes}: "
        f"error {entry.error:.3g}, tolerance {entry.tolerance:.3g} "
        f"(got {entry.got:.7g}, wanted {entry.wanted:.7g}){verdict}"
    )

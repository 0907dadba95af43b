"""``bscompile bench OUT.bsc``: how fast is it?"""

from __future__ import annotations

from pathlib import Path

import click

from bscompile.cli.talk import Talk, dims_option, parse_dims, talk_options, threads_option


@click.command(name="bench")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="MODEL.onnx",
    help="Time onnxruntime on this model beside it.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="How long to measure.",
)
@dims_option
@threads_option
@talk_options
def command(
    talk: Talk,
    artifact: Path,
    against: Path | None,
    seconds: float,
    dims: tuple[str, ...],
    threads: int | None,
) -> None:
    """Time an artifact, and onnxruntime beside it.

    The two take turns on the same threads. Symbolic dimensions are 1 where they are the first
    axis of an input and 128 elsewhere, unless --dim says otherwise.
    """
    lengths = parse_dims(dims)
    from bscompile.benchmark import bench

    with talk.phases() as progress:
        result = bench(
            artifact,
            against,
            seconds=seconds,
            lengths=lengths,
            threads=threads,
            progress=progress,
        )
    if talk.json:
        talk.give(result.to_dict())
        return
    talk.say_how(result.stand_in, result.remark)
    from rich.table import Table

    from bscompile.report.tables import duration, quantity

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("engine", "median", "min", "p10", "p90", "calls", "samples/s"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for name, latency in (("bscompile", result.artifact), ("onnxruntime", result.onnxruntime)):
        if latency is not None:
            times = (latency.median, latency.minimum, latency.p10, latency.p90)
            rate = quantity(result.samples / latency.median)
            table.add_row(name, *map(duration, times), str(latency.calls), rate)
    talk.show(table)
    if result.speedup is not None:
        click.echo(f"{result.speedup:.2f} times onnxruntime's speed, by medians")
    sizes = "".join(f", {name}={length}" for name, length in result.lengths.items())
    talk.say(f"{result.threads} threads{sizes}")

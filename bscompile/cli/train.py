"""``bscompile train``: train a factorized block-sparse model and write it as ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bscompile.cli.plan import layer_rows_option, target_option
from bscompile.cli.talk import Talk, talk_options

if TYPE_CHECKING:
    from bscompile.models import Trainer
    from bscompile.models.recipe import Recipe
    from bscompile.models.selection import CostOf

METHODS = ("gradual", "l1", "dense", "magnitude", "group-lasso", "elastic", "rigl")
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(name="train")
@click.option(
    "--model",
    "model_name",
    default="mlp",
    show_default=True,
    metavar="NAME",
    help="linear, mlp, lenet5, vit-digits, vit-tiny or swin-digits.",
)
@click.option(
    "--data",
    "data_name",
    default="digits",
    show_default=True,
    metavar="NAME",
    help="digits, or teacher (a random factorized layer to recover).",
)
@click.option(
    "--block", default="8x8", show_default=True, metavar="OUTxIN", help="Size of the blocks."
)
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Number of Kronecker terms.",
)
@click.option("--convolutions", is_flag=True, help="Factorize convolutions too.")
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.75,
    show_default=True,
    help="Share of blocks that end exactly zero.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="gradual",
    show_default=True,
    help="What makes the zeros; from 'dense' on, layers are not factorized.",
)
@click.option(
    "--select", metavar="B,B,...", help="Choose the block among these in a run before the training."
)
@click.option(
    "--cost",
    type=click.Choice(("uniform", "parameters", "flops", "latency")),
    default="flops",
    show_default=True,
    help="What --select charges a block for.",
)
@click.option("--per-layer", is_flag=True, help="With --select, let every layer choose for itself.")
@target_option("Where --cost latency would run the layers")
@layer_rows_option("Rows of x that --cost latency counts with")
@click.option(
    "--measure",
    is_flag=True,
    help="Let --cost latency build kernels and time them, not ask the cost model.",
)
@click.option("--distill", is_flag=True, help="Train a dense teacher first and learn from it.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Epochs in which zeros are made.",
)
@click.option(
    "--finetune-epochs",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Epochs after that, with the zeros fixed.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Rows of a step."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=5e-3,
    show_default=True,
    help="Its peak.",
)
@click.option(
    "--finetune-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=3e-3,
    show_default=True,
    help="Peak of the learning rate once the zeros are fixed.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Stop after so many fine-tuning epochs without a better loss; 0 never.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is random.")
@click.option(
    "--form",
    type=click.Choice(("factorized", "merged")),
    default="factorized",
    show_default=True,
    help="How the layers are written.",
)
@click.option(
    "--checkpoint",
    type=FILE,
    metavar="FILE.safetensors",
    help="Written after each epoch; training goes on from it if it exists.",
)
@click.option("--log", "log_path", type=FILE, metavar="FILE.csv", help="One line an epoch.")
@click.option(
    "--plot", "plot_path", type=FILE, metavar="FILE.png", help="Accuracy against sparsity."
)
@click.option(
    "-o", "--output", type=FILE, required=True, metavar="OUT.onnx", help="Where to write the model."
)
@talk_options
def command(talk: Talk, output: Path, **options: Any) -> None:
    """Train a factorized block-sparse model and write it as ONNX.

    \b
        bscompile train --model mlp --block 8x8 --rank 4 --sparsity 0.75 -o model.onnx
        bscompile train --select 4x4,8x8 --cost latency --target cpu -o model.onnx
        bscompile build model.onnx
    """  # noqa: D301 - a backspace is click's mark for lines not to be joined
    from bscompile.files import check_writable
    from bscompile.models import export_onnx, load, summary
    from bscompile.models.recipe import prepare

    for path in (output, options["log_path"], options["plot_path"], options["checkpoint"]):
        if path is not None:
            check_writable(path)
    data = load(options["data_name"], options["seed"])
    with _latency(talk, options) as latency:
        trainer = prepare(_recipe(options, latency), data, lambda t: _run(talk, t), talk.say)
    _run(talk, trainer, options["checkpoint"])
    _keep_history(trainer, options)
    export_onnx(trainer.model, output, data.x_test[:2], options["form"])
    result = trainer.result
    if talk.json:
        talk.give(
            {
                "model": str(output),
                "accuracy": result.accuracy,
                "sparsity": result.sparsity,
                "accuracy_before_cut": result.before_cut,
                "accuracy_after_cut": result.after_cut,
                "parameters": summary(trainer.model).parameters,
            }
        )
        return
    talk.say(str(summary(trainer.model)))
    talk.say(
        f"the cut to {result.sparsity:.1%} zero blocks took the accuracy from "
        f"{result.before_cut:.2%} to {result.after_cut:.2%}; it ends at {result.accuracy:.2%}"
    )
    click.echo(output)


def _recipe(options: dict[str, Any], latency: CostOf | None) -> Recipe:
    from bscompile.models import TrainConfig
    from bscompile.models.blocks import parse_block
    from bscompile.models.recipe import Recipe

    candidates = options["select"].split(",") if options["select"] else ()
    return Recipe(
        options["model_name"],
        parse_block(options["block"]),
        options["rank"],
        options["sparsity"],
        options["method"],
        tuple(parse_block(text) for text in candidates),
        latency or options["cost"],
        options["per_layer"],
        options["distill"],
        options["convolutions"],
        TrainConfig(
            options["epochs"],
            options["finetune_epochs"],
            options["batch"],
            options["learning_rate"],
            options["finetune_rate"],
            seed=options["seed"],
            patience=options["patience"],
        ),
    )


@contextmanager
def _latency(talk: Talk, options: dict[str, Any]) -> Iterator[CostOf | None]:
    """Seconds of a layer on the target, where that is what --select charges for."""
    if not options["select"] or options["cost"] != "latency":
        yield None
        return
    from contextlib import closing

    from bscompile import targets
    from bscompile.tuning.estimate import measuring
    from bscompile.tuning.latency import layer_latency

    context = targets.resolve(options["target"])
    density = 1 - options["sparsity"]
    with closing(measuring()) if options["measure"] else nullcontext() as measurer:
        seconds = layer_latency(context, options["rows"], density, measurer)

        def told(shape: tuple[int, int], block: tuple[int, int], rank: int) -> float:
            cost = seconds(shape, block, rank)
            sides = f"[{shape[0]}, {shape[1]}] in {block[0]}x{block[1]}"
            talk.say(f"{sides}: {1e6 * cost:.2f} us on {options['target']}")
            return cost

        yield told


def _run(talk: Talk, trainer: Trainer, checkpoint: Path | None = None) -> None:
    """Train to the end, with a bar that shows the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    total = trainer.config.epochs + trainer.config.finetune_epochs
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = talk.level < 0 or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("training", total=total)
        for log in trainer.run(checkpoint):
            text = f"{log.phase} {log.epoch}/{total}: accuracy {log.accuracy:.2%}"
            progress.update(task, completed=log.epoch, description=text)
            if talk.level > 0:
                talk.say(f"{text}, loss {log.loss:.4f}, zero blocks {log.sparsity:.1%}")


def _keep_history(trainer: Trainer, options: dict[str, Any]) -> None:
    """Write the log and the plot, where they are wanted."""
    from bscompile.models.log import write_csv, write_plot

    if options["log_path"] is not None:
        write_csv(options["log_path"], trainer.result.history)
    if options["plot_path"] is not None:
        title = f"{options['model_name']} on {options['data_name']}, {options['method']}"
        write_plot(options["plot_path"], trainer.result.history, title)

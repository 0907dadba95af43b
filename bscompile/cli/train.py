"""``bscompile train``: train a factorized block-sparse model and write it as ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bscompile.cli.talk import Talk, talk_options

if TYPE_CHECKING:
    from bscompile.models import Dataset, SparsityMethod, Trainer
    from bscompile.models.train import EpochLog

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
    type=click.Choice(("uniform", "parameters", "flops")),
    default="flops",
    show_default=True,
    help="What --select charges a block for.",
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
    default=3e-3,
    show_default=True,
    help="Its peak.",
)
@click.option(
    "--finetune-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
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
    r"""Train a factorized block-sparse model and write it as ONNX.

    \b
        bscompile train --model mlp --block 8x8 --rank 4 --sparsity 0.75 -o model.onnx
        bscompile build model.onnx
    """
    from bscompile.files import check_writable
    from bscompile.models import export_onnx, load, summary

    for path in (output, options["log_path"], options["plot_path"], options["checkpoint"]):
        if path is not None:
            check_writable(path)
    data = load(options["data_name"], options["seed"])
    trainer = _prepare(talk, data, options)
    with _bar(talk, trainer) as advance:
        for log in trainer.run(options["checkpoint"]):
            advance(log)
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


def _prepare(talk: Talk, data: Dataset, options: dict[str, Any]) -> Trainer:
    """The model as the method wants it, in a trainer."""
    from bscompile.errors import UsageError
    from bscompile.models import TrainConfig, Trainer, factorize, plan
    from bscompile.models.blocks import parse_block
    from bscompile.models.zoo.registry import create

    outputs = data.classes or data.y_train.shape[1]
    model, dense = create(options["model_name"], data.features, outputs, options["seed"])
    block, rank = parse_block(options["block"]), options["rank"]
    config = TrainConfig(
        options["epochs"],
        options["finetune_epochs"],
        options["batch"],
        options["learning_rate"],
        options["finetune_rate"],
        seed=options["seed"],
        patience=options["patience"],
    )
    loss = None
    if options["distill"]:
        if not data.classes:
            raise UsageError("--distill needs classes", hint="use --data digits")
        loss = _teacher_loss(talk, data, config, options)
    factorized = options["method"] in ("gradual", "l1")
    if options["select"] and not factorized:
        raise UsageError("--select needs a factorized method", hint="--method gradual or l1")
    if options["select"]:
        model = _select(talk, data, model, dense, config, options)
    elif factorized:
        for step in plan(model, block, rank, exclude=dense):
            if step.message:
                talk.say(str(step))
        model = factorize(model, block, rank, exclude=dense)
    method = _method(options["method"], options["sparsity"], block, dense)
    return Trainer(model, data, method, config, loss)


def _method(
    name: str, sparsity: float, block: tuple[int, int], dense: tuple[str, ...]
) -> SparsityMethod:
    from bscompile.models import GradualPruning, ProximalL1, SparsityMethod
    from bscompile.models.baselines import BlockPruning, BlockRigL, ElasticGroupLasso, GroupLasso

    if name == "gradual":
        return GradualPruning(sparsity)
    if name == "l1":
        return ProximalL1(sparsity)
    if name == "dense":
        return SparsityMethod(0.0, block, dense)
    baselines: dict[str, type[BlockPruning | BlockRigL | GroupLasso | ElasticGroupLasso]] = {
        "magnitude": BlockPruning,
        "group-lasso": GroupLasso,
        "elastic": ElasticGroupLasso,
        "rigl": BlockRigL,
    }
    return baselines[name](sparsity, block, dense)


def _teacher_loss(talk: Talk, data: Dataset, config: Any, options: dict[str, Any]) -> Any:
    """Train a dense model of the same kind and make its answers part of the loss."""
    from bscompile.models import SparsityMethod, Trainer
    from bscompile.models.distill import distillation_loss
    from bscompile.models.zoo.registry import create

    teacher, _ = create(options["model_name"], data.features, data.classes)
    trainer = Trainer(teacher, data, SparsityMethod(), config)
    with _bar(talk, trainer) as advance:
        for log in trainer.run():
            advance(log)
    talk.say(f"teacher: accuracy {trainer.result.accuracy:.2%}")
    return distillation_loss(teacher)


def _select(
    talk: Talk,
    data: Dataset,
    model: Any,
    dense: tuple[str, ...],
    config: Any,
    options: dict[str, Any],
) -> Any:
    """One run with all candidate blocks; the model with fresh layers of the survivor."""
    import dataclasses

    from bscompile.models import Trainer
    from bscompile.models.blocks import parse_block
    from bscompile.models.selection import BlockSelection, add_candidates, keep_survivors

    blocks = [parse_block(text) for text in options["select"].split(",")]
    model = add_candidates(model, blocks, options["rank"], exclude=dense)
    selection = BlockSelection(options["cost"])
    trainer = Trainer(model, data, selection, dataclasses.replace(config, finetune_epochs=0))
    with _bar(talk, trainer) as advance:
        for log in trainer.run():
            advance(log)
    for choice in selection.choices:
        talk.say(f"selected by {options['cost']}: {choice}")
    return keep_survivors(model, selection.choices)


def _keep_history(trainer: Trainer, options: dict[str, Any]) -> None:
    from bscompile.models.log import write_csv, write_plot

    if options["log_path"] is not None:
        write_csv(options["log_path"], trainer.result.history)
    if options["plot_path"] is not None:
        title = f"{options['model_name']} on {options['data_name']}, {options['method']}"
        write_plot(options["plot_path"], trainer.result.history, title)


@contextmanager
def _bar(talk: Talk, trainer: Trainer) -> Iterator[Any]:
    """A function to call with each epoch's log; shows a bar with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    total = trainer.config.epochs + trainer.config.finetune_epochs
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=talk.level < 0 or not console.is_terminal
    ) as progress:
        task = progress.add_task("training", total=total)

        def advance(log: EpochLog) -> None:
            text = f"{log.phase} {log.epoch}/{total}: accuracy {log.accuracy:.2%}"
            progress.update(task, completed=log.epoch, description=text)
            if talk.level > 0:
                talk.say(f"{text}, loss {log.loss:.4f}, zero blocks {log.sparsity:.1%}")

        yield advance

"""What training leaves to look at: a CSV file and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from bscompile.errors import UsageError
from bscompile.files import atomic_file, write_atomically
from bscompile.models.train import EpochLog


def write_csv(path: Path, history: Sequence[EpochLog]) -> None:
    """One line an epoch, with a header.

    Raises:
        StorageError: The file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(EpochLog)])
    writer.writeheader()
    writer.writerows(asdict(log) for log in history)
    write_atomically(path, text.getvalue().encode())


def write_plot(path: Path, history: Sequence[EpochLog], title: str) -> None:
    """A PNG: accuracy against sparsity, one point an epoch, and both over the epochs.

    Raises:
        UsageError: matplotlib is missing.
        StorageError: The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UsageError(
            "the plot needs matplotlib, which is not installed",
            hint="pip install 'bscompile[train]'",
        ) from error
    figure = Figure(figsize=(10, 4), layout="constrained")
    against, over = figure.subplots(1, 2)
    for phase, marker in (("sparsify", "o"), ("finetune", "x")):
        points = [log for log in history if log.phase == phase]
        against.plot(
            [100 * log.sparsity for log in points],
            [100 * log.accuracy for log in points],
            marker,
            label=phase,
        )
    against.set(xlabel="zero blocks (%)", ylabel="test accuracy (%)", title=title)
    against.legend()
    epochs = [log.epoch for log in history]
    over.plot(epochs, [100 * log.accuracy for log in history], label="test accuracy (%)")
    over.plot(epochs, [100 * log.sparsity for log in history], label="zero blocks (%)")
    over.set(xlabel="epoch", ylim=(0, 101))
    over.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)

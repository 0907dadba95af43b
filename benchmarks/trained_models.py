"""Train, export, build, run on digits: does the artifact know what torch knew, zeros and all?

Every model of the zoo's registry, factorized with rank 2 and trained to 75 % zero blocks; LeNet-5
with its convolutions. Both forms of export. Printed: test accuracy of torch and of the artifact,
how many of the 360 answers are the same class, and in how many layers the compiler counts as many
live blocks as were trained. A layer may have fewer: units that no live block reads or writes are
removed with the blocks that they had ("shrunk"). Or the compiler keeps another description
("other"), where the few live blocks of a small layer are cheaper than its factors.

    python -m benchmarks.trained_models [--only NAME ...] [--epochs 12 4]
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bscompile
from bscompile.models import (
    Dataset,
    GradualPruning,
    TrainConfig,
    block_sparse_layers,
    export_onnx,
    factorize,
    load,
    train,
)
from bscompile.models.export import ExportForm
from bscompile.models.zoo.registry import ENTRIES, create

BLOCKS = {"linear": (2, 8), "lenet5": (4, 4)}  # 8x8 for the others
EPOCHS = {"vit-tiny": (2, 1)}  # 5.3 million parameters


def trained(name: str, data: Dataset, epochs: tuple[int, int]) -> nn.Module:
    """A model of the zoo, factorized and trained to 75 % zero blocks."""
    model, dense = create(name, data.features, data.classes, seed=0)
    block = BLOCKS.get(name, (8, 8))
    factorize(model, block, 2, exclude=dense, convolutions=name == "lenet5")
    train(model, data, GradualPruning(0.75), TrainConfig(*epochs))
    return model.eval()


@dataclass
class Outcome:
    """What became of a trained model in an artifact.

    Attributes:
        want: Torch's outputs for the test rows.
        got: The artifact's.
        equal: Layers of as many live blocks as were trained.
        shrunk: Layers that lost blocks together with units of no effect.
        other: Layers that the compiler describes otherwise, or does not name.
        wrong: Layers with another number of live blocks or another block.
    """

    want: np.ndarray
    got: np.ndarray
    equal: list[str] = field(default_factory=list)
    shrunk: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def outcome(model: nn.Module, data: Dataset, form: ExportForm, folder: Path) -> Outcome:
    """Export, build, load and run on the test rows."""
    with torch.no_grad():
        want = model(data.x_test).numpy()
    path = export_onnx(model, folder / "m.onnx", data.x_test[:2], form)
    compiled = bscompile.build(path)
    compiled.save(folder / "m.bsc")
    with bscompile.load(folder / "m.bsc") as artifact:
        found = Outcome(want, artifact(data.x_test.numpy()))
    rows = {row["name"]: row for row in compiled.report.to_dict()["layers"]}
    for name, layer in block_sparse_layers(model):
        parts = _parts(rows, name)
        if not parts or any(part["found"] != "kronecker" for part in parts):
            found.other.append(name)
            continue
        blocks = {tuple(part["trained_block"]) for part in parts}
        grids = [np.floor_divide(part["shape"], part["trained_block"]) for part in parts]
        grid = (int(sum(rows for rows, _ in grids)), int(grids[0][1]))
        live = sum(round(p["density"] * g.prod()) for p, g in zip(parts, grids, strict=True))
        trained_live = int(layer.support().sum())
        if blocks != {layer.block} or live > trained_live:
            found.wrong.append(name)
        elif grid != tuple(layer.mask.shape):
            found.shrunk.append(name)
        else:
            (found.equal if live == trained_live else found.wrong).append(name)
    return found


def _parts(rows: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows of a layer: its own, or those of the parts that the compiler cut it into."""
    if name in rows:
        return [rows[name]]
    cut = re.compile(re.escape(name) + r"\.\d+")
    return [row for other, row in rows.items() if cut.fullmatch(other)]


def main() -> None:
    """Train each model, export it in both forms, and print what became of its layers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--epochs", type=int, nargs=2, default=(12, 4))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load("digits")
    answers = data.y_test.numpy()
    print(f"{'model':12s} {'form':11s}   torch  artifact  same class  equal shrunk other wrong")
    for name in given.only:
        begun = time.perf_counter()
        model = trained(name, data, EPOCHS.get(name, (given.epochs[0], given.epochs[1])))
        forms: tuple[ExportForm, ...] = ("factorized", "merged")
        for form in forms:
            with tempfile.TemporaryDirectory() as folder:
                found = outcome(model, data, form, Path(folder))
            theirs, ours = found.want.argmax(1), found.got.argmax(1)
            accuracy = [100 * float((classes == answers).mean()) for classes in (theirs, ours)]
            counts = (len(v) for v in (found.equal, found.shrunk, found.other, found.wrong))
            text = "{:6d} {:6d} {:5d} {:5d}".format(*counts)
            print(
                f"{name:12s} {form:11s} {accuracy[0]:6.2f}% {accuracy[1]:7.2f}%"
                f"  {int((theirs == ours).sum()):4d} of {len(answers)} {text}"
                f"   {time.perf_counter() - begun:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

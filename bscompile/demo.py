"""The whole road on one screen: ``python -m bscompile.demo``, or ``make demo``.

First a real task: an MLP is trained on scikit-learn's digits with factorized block-sparse layers,
exported, built, verified, inspected and timed, and its accuracy is compared before and after. Then
a ViT-tiny-sized encoder, where speed shows: with random block-sparse and factorized weights, since
its time does not depend on what it has learned.

Every command is printed as a user would type it and runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.rule import Rule
from torch import nn

import bscompile
from bscompile.models import (
    Dataset,
    GradualPruning,
    SparsityMethod,
    TrainConfig,
    export_onnx,
    factorize,
    load,
    summary,
    train,
)
from bscompile.models.zoo import mlp, vit_tiny

console = Console()
SPARSITY = 0.75


def main() -> None:
    """Run both parts in a temporary folder, or in the folder named on the command line."""
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        folder.mkdir(parents=True, exist_ok=True)
        run(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="bscompile-demo-") as name:
            run(Path(name))


def run(folder: Path) -> None:
    """Both parts; files are written to ``folder``."""
    torch.manual_seed(0)
    digits(folder)
    encoder(folder)
    console.print(Rule("done"))


def digits(folder: Path) -> None:
    """Train, export, build, verify, compare accuracy, inspect, time."""
    console.print(Rule("1. a factorized model, trained on digits"))
    data = load("digits")
    dense = mlp()
    reference = train(dense, data, SparsityMethod(), TrainConfig(epochs=15, finetune_epochs=0))
    console.print(f"dense model: accuracy {reference.accuracy:.1%}")
    model = factorize(mlp(), block=(4, 4), rank=4, exclude=("4",))
    result = train(model, data, GradualPruning(sparsity=SPARSITY), TrainConfig(epochs=25))
    console.print(
        f"factorized model, 4x4 blocks, rank 4: accuracy {result.accuracy:.1%} "
        f"at {result.sparsity:.0%} zero blocks"
    )
    console.print(str(summary(model)))
    path = export_onnx(model, folder / "digits.onnx", data.x_test[:2])
    artifact = folder / "digits.bsc"
    command("build", path, "-o", artifact, "--quiet")
    command("verify", artifact, path)
    command("inspect", artifact)
    compiled = accuracy(artifact, data)
    console.print(f"accuracy in torch {result.accuracy:.2%}, of the artifact {compiled:.2%}")
    command("bench", artifact, "--against", path)


def accuracy(artifact: Path, data: Dataset) -> float:
    """Share of the test images that the artifact puts into the right class."""
    with bscompile.load(artifact) as model:
        scores = model(data.x_test.numpy())
    assert isinstance(scores, np.ndarray)
    return float((scores.argmax(axis=1) == data.y_test.numpy()).mean())


def encoder(folder: Path) -> None:
    """ViT-tiny with random weights: 10 % of 16x16 blocks live, then factorized."""
    image = torch.randn(1, 3, 224, 224)
    forms = {
        "16x16 blocks, 10 % live": sparse_vit(),
        "factorized, 8x8 blocks, rank 1, 10 % live": factorized_vit(),
    }
    for number, (what, model) in enumerate(forms.items(), 2):
        console.print(Rule(f"{number}. a ViT-tiny encoder: {what}"))
        path = export_onnx(model, folder / f"vit{number}.onnx", image, dynamic_batch=False)
        artifact = folder / f"vit{number}.bsc"
        command("build", path, "-o", artifact, "--quiet")
        command("verify", artifact, path, "--samples", "2")
        command("bench", artifact, "--against", path)
    console.print("\nWhat became of each layer, and why: bscompile inspect, as above.")


def sparse_vit() -> nn.Module:
    """Linear layers with 90 % of their 16x16 blocks zero."""
    model = vit_tiny()
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not any(side % 16 for side in layer.weight.shape):
            rows, cols = (side // 16 for side in layer.weight.shape)
            live = torch.rand(rows, cols, generator=generator) < 0.1
            layer.weight.data *= torch.kron(live, torch.ones(16, 16))
    return model


def factorized_vit() -> nn.Module:
    """Linear layers as Kronecker products, 90 % of the coefficients zero."""
    model = factorize(vit_tiny(), block=(8, 8), rank=1)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "S":
            parameter.data *= torch.rand(parameter.shape, generator=generator) < 0.1
    return model


def command(*arguments: object) -> None:
    """Print and run ``bscompile`` with these arguments; leave with its code if it fails."""
    words = [str(a) for a in arguments]
    shown = [Path(w).name if os.sep in w else w for w in words]
    console.print(f"\n[bold]$ bscompile {' '.join(shown)}[/bold]", highlight=False)
    code = subprocess.run([sys.executable, "-m", "bscompile", *words], check=False).returncode
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()

"""Models by name, sized for a data set: what ``bscompile train --model`` knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bscompile.errors import UsageError, did_you_mean
from bscompile.models.zoo.feed_forward import lenet5, linear, mlp
from bscompile.models.zoo.swin import swin_digits
from bscompile.models.zoo.vision_transformer import VisionTransformer, vit_digits


@dataclass(frozen=True)
class Entry:
    """How to build a model, and which layer is its head.

    Attributes:
        build: From the size of a row and the number of outputs to a model.
        head: Name of the last layer, which stays dense unless it is the only one.
        features: The size of a row that it needs; 0 for any.
    """

    build: Callable[[int, int], nn.Module]
    head: str
    features: int = 0


ENTRIES: dict[str, Entry] = {
    "linear": Entry(linear, ""),
    "mlp": Entry(lambda features, classes: mlp(features, classes=classes), "4"),
    "lenet5": Entry(lambda _, classes: lenet5(classes, side=8), "fc3", features=64),
    "vit-digits": Entry(lambda _, classes: vit_digits(classes), "head", features=64),
    # The body of ViT-tiny, 5.3 million parameters, over 2x2 patches.
    "vit-tiny": Entry(
        lambda _, classes: VisionTransformer(192, 12, 3, classes, side=8, patch=2, channels=1),
        "head",
        features=64,
    ),
    "swin-digits": Entry(lambda _, classes: swin_digits(classes), "head", features=64),
}


def create(
    name: str, features: int, outputs: int, seed: int | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a model by name.

    Args:
        name: One of ``ENTRIES``.
        features: Size of an input row.
        outputs: Number of classes, or of regression targets.
        seed: Set for all that torch draws from here on, this model first.

    Returns:
        The model and the names of layers that should stay dense.

    Raises:
        UsageError: The name is unknown, or the model needs rows of another size.
    """
    if name not in ENTRIES:
        raise UsageError(f"unknown model {name!r}", hint=did_you_mean(name, ENTRIES))
    entry = ENTRIES[name]
    if entry.features not in (0, features):
        raise UsageError(f"model {name} needs rows of {entry.features} values, got {features}")
    if seed is not None:
        torch.manual_seed(seed)
    return entry.build(features, outputs), (entry.head,) if entry.head else ()

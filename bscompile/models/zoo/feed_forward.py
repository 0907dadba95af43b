"""The paper's small models: one linear layer, an MLP, and LeNet-5."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn


def linear(inputs: int = 784, classes: int = 10) -> nn.Sequential:
    """One linear layer, as in the paper's first experiment."""
    return nn.Sequential(nn.Linear(inputs, classes))


def mlp(inputs: int = 64, hidden: Sequence[int] = (128, 128), classes: int = 10) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for size, following in itertools.pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


class LeNet5(nn.Module):
    """Two convolutions and three linear layers 400-120-84-classes.

    Args:
        classes: Number of classes.
        side: 32 as in the original, 28 for MNIST (the first convolution is then padded), or 8
            for digits, whose images are enlarged fourfold.
    """

    def __init__(self, classes: int = 10, side: int = 28) -> None:
        super().__init__()
        if side not in (8, 28, 32):
            raise ValueError(f"side must be 8, 28 or 32, got {side}")
        self.side = side
        enlarge = nn.Upsample(scale_factor=4.0, mode="nearest") if side == 8 else nn.Identity()
        self.features = nn.Sequential(
            enlarge,
            nn.Conv2d(1, 6, 5, padding=2 if side == 28 else 0),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, side²] or [N, 1, side, side] -> [N, classes]."""
        y = self.features(x.reshape(-1, 1, self.side, self.side)).flatten(1)
        logits: Tensor = self.fc3(self.fc2(self.fc1(y).relu()).relu())
        return logits


def lenet5(classes: int = 10, side: int = 28) -> LeNet5:
    """LeNet-5 with three linear layers."""
    return LeNet5(classes, side)

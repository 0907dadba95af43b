"""Data that needs no download: scikit-learn's digits, and a teacher with a known weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bscompile.errors import UsageError, did_you_mean
from bscompile.models.blocks import Block, merge_factors

DATASETS = ("digits", "teacher")


@dataclass(frozen=True)
class Dataset:
    """A split into training and test rows.

    Attributes:
        x_train: Float [N, n].
        y_train: Int64 [N] for classes, float [N, m] for regression.
        x_test: Float [M, n].
        y_test: As ``y_train``.
        classes: Number of classes; 0 for regression.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    @property
    def features(self) -> int:
        """Size n of a row."""
        return self.x_train.shape[1]


def load(name: str, seed: int = 0) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of ``DATASETS``.
        seed: Chooses the split, or the teacher.

    Raises:
        UsageError: The name is unknown, or scikit-learn is missing.
    """
    if name == "digits":
        return digits(seed)
    if name == "teacher":
        return teacher(seed)[0]
    raise UsageError(f"unknown data set {name!r}", hint=did_you_mean(name, DATASETS))


def digits(seed: int = 0, test_rows: int = 360) -> Dataset:
    """1797 images of 8x8 in rows of 64, ten classes, a stratified split.

    Raises:
        UsageError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise UsageError(
            "the digits data come with scikit-learn, which is not installed",
            hint="pip install 'bscompile[train]'",
        ) from error
    bunch = load_digits()
    rows = (bunch.data / 16 - 0.3).astype("float32")  # mean about zero
    parts = train_test_split(
        rows, bunch.target, test_size=test_rows, stratify=bunch.target, random_state=seed
    )
    x_train, x_test, y_train, y_test = (torch.tensor(part) for part in parts)
    return Dataset(x_train, y_train, x_test, y_test, classes=10)


def teacher(
    seed: int = 0,
    shape: tuple[int, int] = (32, 48),
    block: Block = (4, 4),
    rank: int = 1,
    sparsity: float = 0.75,
    rows: int = 2048,
    noise: float = 0.0,
) -> tuple[Dataset, Tensor, Tensor]:
    """Rows x ~ N(0, 1) and y = x Wᵀ with a random factorized W.

    Args:
        seed: Chooses W and the rows.
        shape: (out, in) of W.
        block: (bh, bw).
        rank: Number of Kronecker terms.
        sparsity: Share of zero blocks.
        rows: Training rows; a quarter as many are added for the test.
        noise: Deviation of Gaussian noise on the training targets.

    Returns:
        The data, W [out, in], and its support, bool [m1, n1].
    """
    generator = torch.Generator().manual_seed(seed)
    (out, inner), (bh, bw) = shape, block
    m1, n1 = out // bh, inner // bw
    order = torch.randperm(m1 * n1, generator=generator)
    support = (order >= round(sparsity * m1 * n1)).view(m1, n1)
    # Coefficients bounded away from zero, so that "live" is a fact and not a matter of degree.
    size = 0.5 + torch.rand(rank, m1, n1, generator=generator)
    sign = torch.randint(0, 2, (rank, m1, n1), generator=generator) * 2 - 1
    patterns = torch.randn(rank, bh, bw, generator=generator)
    weight = merge_factors(size * sign * support, patterns) / inner**0.5
    x = torch.randn(rows + rows // 4, inner, generator=generator)
    y = x @ weight.T
    train = y[:rows] + noise * torch.randn(rows, out, generator=generator)
    return Dataset(x[:rows], train, x[rows:], y[rows:], classes=0), weight, support

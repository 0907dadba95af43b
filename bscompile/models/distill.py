"""Knowledge distillation: a dense teacher's softened answers as part of the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bscompile.models.train import Loss


def distillation_loss(teacher: nn.Module, temperature: float = 4.0, weight: float = 0.9) -> Loss:
    """A loss for ``Trainer``: cross-entropy blended with the divergence from a teacher.

    (1 - w) CE(y) + w T² KL(softmax(teacher / T) ‖ softmax(student / T)); T² keeps the size of
    the gradient independent of the temperature.

    A factorized model of low rank fits its training rows as well as a dense one does, and gains
    from the teacher what it lacks on others (benchmarks/results/digits_accuracy.txt). Train the
    teacher to the end first: one that is a little better gives a student that is, too.

    Args:
        teacher: A trained classifier; put into evaluation mode and left unchanged.
        temperature: T.
        weight: w.
    """
    teacher.eval()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)
        with torch.no_grad():
            wanted = (teacher(x) / temperature).log_softmax(1)
        divergence = nn.functional.kl_div(
            (logits / temperature).log_softmax(1), wanted, reduction="batchmean", log_target=True
        )
        blended = weight * temperature**2 * divergence
        return (1 - weight) * nn.functional.cross_entropy(logits, y) + blended

    return loss

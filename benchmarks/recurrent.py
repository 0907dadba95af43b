"""Recurrent layers as families: 64 steps of 128 inputs, 256 hidden units, one direction."""

from __future__ import annotations

import torch
from torch import nn

from tests.end_to_end.families import Family

STEPS, INPUTS, HIDDEN = 64, 128, 256


class _Sequence(nn.Module):
    """A recurrent layer reduced to the states of all steps."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def _sequence(full: bool, batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(STEPS if full else 6, batch, INPUTS)}


RECURRENT = {
    name: Family(name, lambda full, kind=kind: _Sequence(kind(INPUTS, HIDDEN)), _sequence)
    for name, kind in (("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN))
}

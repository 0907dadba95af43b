"""What training hid in a weight can be found again: block, rank and pattern."""

import numpy as np
import pytest
import torch
from torch import nn

from bscompile.formats.recover import recover_kronecker
from bscompile.models import (
    BlockSparseLinear,
    GradualPruning,
    TrainConfig,
    factorize,
    load,
    merge,
    train,
)
from bscompile.models.data import teacher


@pytest.mark.parametrize(("block", "rank", "seed"), [((4, 4), 1, 0), ((4, 8), 2, 1)])
def test_student_finds_the_teachers_pattern_and_weight(block, rank, seed):
    data, weight, support = teacher(seed, block=block, rank=rank, rows=1024)
    torch.manual_seed(seed)
    student = BlockSparseLinear(48, 32, block, rank + 1)
    config = TrainConfig(60, 60, learning_rate=1e-2, finetune_rate=1e-2, weight_decay=0.0)
    result = train(student, data, GradualPruning(0.75), config)
    assert torch.equal(student.support(), support)
    error = (student.weight - weight).norm() / weight.norm()
    assert error.item() < 0.02
    assert result.accuracy > 0.999  # R squared


def test_merged_trained_weight_gives_block_rank_and_pattern_back():
    torch.manual_seed(0)
    layers = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    model = factorize(nn.Sequential(*layers), 8, 2, exclude=["4"])
    train(model, load("digits"), GradualPruning(0.5), TrainConfig(6, 2))
    supports = [model[i].support().numpy() for i in (0, 2)]
    merge(model)
    for index, support in zip((0, 2), supports, strict=True):
        found = recover_kronecker(model[index].weight.detach().numpy())
        assert not isinstance(found, str), found
        assert found.block == (8, 8)
        assert found.rank == 2
        assert np.array_equal(found.support, support)

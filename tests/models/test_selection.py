import pytest
import torch
from torch import nn

from bscompile.errors import UsageError
from bscompile.models import BlockSparseLinear, TrainConfig, load, train
from bscompile.models.selection import (
    BlockSelection,
    CandidateLinear,
    add_candidates,
    keep_survivors,
)
from tests.tolerance import assert_close


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def candidates(blocks=(2, 8), hidden=32):
    torch.manual_seed(0)
    layers = nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
    model = nn.Sequential(*layers, nn.Linear(hidden, 10))
    return add_candidates(model, blocks, rank=2, exclude=["4"])


def test_candidates_add_up():
    layer = candidates()[0]
    x = torch.randn(3, 64)
    want = sum(layer.of(k)(x) for k in range(2)) + layer.bias
    assert_close(layer(x).detach(), want.detach(), "float32", 64)
    layer.alive[0] = False
    assert_close(layer(x).detach(), (layer.of(1)(x) + layer.bias).detach(), "float32", 64)


@pytest.mark.parametrize("cost", ["parameters", "flops"])
def test_growing_penalty_leaves_one_block_which_trains_again(cost, digits):
    model = candidates()
    selection = BlockSelection(cost)
    train(model, digits, selection, TrainConfig(20, 0))
    (choice,) = selection.choices
    assert choice.decided
    assert choice.layers == ("0", "2")
    assert set(choice.dropped_at) | set(choice.survivors) == {(2, 2), (8, 8)}
    keep_survivors(model, selection.choices)
    assert isinstance(model[0], BlockSparseLinear)
    assert model[0].block == choice.survivors[0]


def test_charge_decides_who_survives(digits):
    survivors = []
    for cost in ({(2, 2): 1.0, (8, 8): 9.0}, {(2, 2): 9.0, (8, 8): 1.0}):
        selection = BlockSelection(cost)
        train(candidates(), digits, selection, TrainConfig(15, 0))
        survivors += selection.choices[0].survivors
    assert survivors == [(2, 2), (8, 8)]


def test_charge_may_be_a_function_of_the_layer():
    seen = []

    def latency(shape, block, rank):
        seen.append((shape, block, rank))
        return shape[0] * shape[1] * (3.0 if block == (2, 2) else 1.0)

    selection = BlockSelection(latency)
    selection.attach(candidates())
    assert selection.groups[0].charges == [1.5, 0.5]  # added up over the layers, of mean 1
    assert ((32, 64), (8, 8), 2) in seen
    with pytest.raises(UsageError, match=r"cost: wanted positive numbers, got \[0\.0, 0\.0\]"):
        BlockSelection(lambda *_: 0.0).attach(candidates())


def test_each_layer_may_choose_for_itself(digits):
    selection = BlockSelection("flops", per_layer=True)
    model = candidates()
    train(model, digits, selection, TrainConfig(2, 0))
    assert [choice.layers for choice in selection.choices] == [("0",), ("2",)]


def test_undecided_is_said(digits):
    selection = BlockSelection("uniform", growth=1.0)
    model = candidates()
    train(model, digits, selection, TrainConfig(1, 0))
    assert str(selection.choices[0]) == "2 layers: undecided among 2x2, 8x8"
    with pytest.raises(UsageError, match="undecided among 2x2, 8x8"):
        keep_survivors(model, selection.choices)


def test_survivor_may_keep_what_it_learned():
    model = candidates()
    layer = model[0]
    layer.alive[0] = False
    model[2].alive[0] = False
    selection = BlockSelection()
    selection.attach(model)
    selection.groups[0].dropped[(2, 2)] = 0.5
    x = torch.randn(4, 64)
    want = model(x)
    keep_survivors(model, selection.choices, fresh=False)
    assert not any(isinstance(m, CandidateLinear) for m in model.modules())
    assert torch.equal(model(x), want)


def test_bad_candidates_are_named():
    with pytest.raises(UsageError, match="two different blocks"):
        candidates(blocks=(8, 8))
    with pytest.raises(UsageError, match="no linear layer is divided by all"):
        candidates(blocks=(3, 5))
    with pytest.raises(UsageError, match="cost: wanted one of uniform, parameters, flops"):
        BlockSelection("speed")
    with pytest.raises(UsageError, match=r"no entry for block \(8, 8\)"):
        BlockSelection({(2, 2): 1.0}).attach(candidates())

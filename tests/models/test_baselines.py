import pytest
import torch
from torch import nn

from bscompile.models import GradualPruning, TrainConfig, Trainer, factorize, load, train
from bscompile.models.baselines import BlockPruning, BlockRigL, ElasticGroupLasso, GroupLasso
from bscompile.models.blocks import block_norms, live_blocks
from bscompile.models.distill import distillation_loss
from tests.tolerance import assert_close


def mlp(seed=0):
    torch.manual_seed(seed)
    layers = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(64, 10))


@pytest.mark.parametrize("method", [GroupLasso, ElasticGroupLasso, BlockRigL, BlockPruning])
def test_every_baseline_ends_with_exactly_the_zero_blocks_asked_for(method):
    model = mlp()
    result = train(model, load("digits"), method(0.75, (8, 4), ["4"]), TrainConfig(10, 5))
    for layer in (model[0], model[2]):
        assert 1 - live_blocks(layer.weight.detach(), (8, 4)).double().mean() == 0.75
    assert live_blocks(model[4].weight.detach(), (2, 4)).all()
    assert result.sparsity == 0.75
    assert result.accuracy > 0.75


def test_group_lasso_step_shortens_every_block_and_zeroes_the_weak():
    layer = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        layer.weight[:4, :4] *= 1e-3
    before = block_norms(layer.weight.detach(), (4, 4))
    method = GroupLasso(0.0, 4, strength=10.0)
    method.attach(layer)
    method.step(0.01, 0.5)
    after = block_norms(layer.weight.detach(), (4, 4))
    assert not layer.weight[:4, :4].any()
    assert_close(after, (before - 0.1).clamp_min(0), "float32", 16)


def test_rigl_keeps_its_sparsity_and_changes_its_pattern():
    trainer = Trainer(mlp(), load("digits"), BlockRigL(0.5, 8, ["4"]), TrainConfig(4, 0))
    before = [layer.mask.clone() for layer in trainer.method.layers]
    for _ in trainer.run():
        assert all(layer.mask.double().mean() == 0.5 for layer in trainer.method.layers)
    after = [layer.mask for layer in trainer.method.layers]
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_distillation_pulls_towards_the_teacher():
    teacher, student = mlp(1), factorize(mlp(2), 8, 2)
    x = load("digits").x_train[:256]
    data = load("digits")
    agree = distillation_loss(teacher, weight=1.0)
    with torch.no_grad():
        before = float(agree(student, x, data.y_train[:256]))
    Trainer(student, data, GradualPruning(0.0), TrainConfig(5, 0), agree).fit()
    with torch.no_grad():
        assert float(agree(student, x, data.y_train[:256])) < 0.5 * before
    assert all(p.grad is None for p in teacher.parameters())

import math

import pytest
import torch
from torch import nn

from bscompile.errors import BscompileError, StorageError, UsageError
from bscompile.models import (
    GradualPruning,
    ProximalL1,
    SparsityMethod,
    TrainConfig,
    block_sparse_layers,
    factorize,
    load,
    train,
)
from bscompile.models.baselines import BlockPruning
from bscompile.models.distill import distillation_loss
from bscompile.models.schedule import CubicSchedule
from bscompile.models.train import Trainer

SHORT = TrainConfig(epochs=8, finetune_epochs=2)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def mlp(seed=0, hidden=64):
    torch.manual_seed(seed)
    layers = nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(hidden, 10))


def factorized(rank=4, block=8, hidden=64):
    return factorize(mlp(hidden=hidden), block, rank, exclude=["4"])


@pytest.mark.parametrize("method", [GradualPruning, ProximalL1])
def test_reaches_exactly_the_target_sparsity_and_learns(method, digits):
    model = factorized()
    result = train(model, digits, method(0.75), TrainConfig(epochs=20, finetune_epochs=5))
    assert result.sparsity == 0.75
    for _, layer in block_sparse_layers(model):
        blocks = layer.weight.view(layer.shape[0] // 8, 8, layer.shape[1] // 8, 8)
        assert (blocks == 0).all(3).all(1).double().mean() == 0.75
        assert layer.S.eq(0).double().mean() == 0.75
    assert result.accuracy > 0.85
    assert result.after_cut <= result.before_cut + 0.05


def test_proximal_step_makes_exact_zeros_by_itself(digits):
    trainer = Trainer(factorized(), digits, ProximalL1(0.75), TrainConfig(epochs=20))
    for log in trainer.run():
        if log.epoch == 19:
            break
    # Before any cut; the control need not hit the target, only come near.
    assert 0.5 < trainer.method.sparsity < 0.95


def test_dense_layers_are_pruned_through_the_same_interface(digits):
    model = mlp()
    result = train(model, digits, GradualPruning(0.5, block=8, exclude=["4"]), SHORT)
    blocks = model[2].weight.view(8, 8, 8, 8)
    assert (blocks == 0).all(3).all(1).double().mean() == 0.5
    assert result.sparsity == 0.5
    assert result.accuracy > 0.9


def test_same_seed_same_result(digits):
    first, second = factorized(), factorized()
    config = TrainConfig(epochs=2, finetune_epochs=1)
    train(first, digits, GradualPruning(0.5), config)
    train(second, digits, GradualPruning(0.5), config)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_interrupted_training_resumes_to_the_same_weights(digits, tmp_path):
    config = TrainConfig(epochs=4, finetune_epochs=2)
    whole = factorized()
    want = Trainer(whole, digits, GradualPruning(0.5), config).fit()
    path = tmp_path / "run.safetensors"
    for stop in (2, 5, 6):
        model = factorized()
        trainer = Trainer(model, digits, GradualPruning(0.5), config)
        for log in trainer.run(path):
            if log.epoch == stop:
                break
    assert trainer.result == want
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoint_of_another_configuration_is_refused(digits, tmp_path):
    path = tmp_path / "run.safetensors"
    config = TrainConfig(epochs=2, finetune_epochs=0)
    list(Trainer(factorized(), digits, GradualPruning(0.5), config).run(path))
    others = {
        "config: epochs was 2, now 3": (factorized(), 0.5, TrainConfig(epochs=3)),
        "method: it has GradualPruning sparsity=0.5, now .* sparsity=0.6": (
            factorized(), 0.6, config,
        ),
        r"model: 0.A was \[4, 8, 8\], now \[2, 8, 8\]": (factorized(rank=2), 0.5, config),
    }  # fmt: skip
    for message, (model, sparsity, settings) in others.items():
        with pytest.raises(UsageError, match=message):
            list(Trainer(model, digits, GradualPruning(sparsity), settings).run(path))
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(StorageError, match="cannot read the checkpoint"):
        list(Trainer(factorized(), digits, GradualPruning(0.5), config).run(path))


def test_loss_that_is_not_finite_is_named(digits):
    model = factorized()
    with torch.no_grad():
        model[0].A.fill_(math.nan)
    with pytest.raises(BscompileError, match=r"training: loss is nan in epoch 1 \(lower the"):
        train(model, digits, SparsityMethod(), SHORT)


def test_early_stop(digits):
    config = TrainConfig(epochs=1, finetune_epochs=50, finetune_rate=0.0, patience=2, batch=1437)
    result = train(factorized(), digits, GradualPruning(0.5), config)
    assert len(result.history) < 10


def test_schedule_rises_to_the_target():
    schedule = CubicSchedule(0.8, 0.2, 0.7)
    values = [schedule(i / 20) for i in range(21)]
    assert values == sorted(values)
    assert values[4] == 0
    assert schedule(0.7) == schedule(1.0) == pytest.approx(0.8)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(UsageError, match=r"sparsity must lie in \[0, 1\)"):
        GradualPruning(sparsity)


@pytest.mark.parametrize("method", [GradualPruning(0.5), ProximalL1(0.5)])
def test_zeros_without_a_layer_to_make_them_in(method):
    with pytest.raises(UsageError, match=r"sparsity 0\.5 is wanted, .* no factorized layer"):
        method.attach(mlp())
    with pytest.raises(UsageError, match=r"no layer in 256 blocks"):
        GradualPruning(0.5, block=256).attach(mlp())


def test_unknown_data_set():
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        load("digit")


@pytest.mark.slow
@pytest.mark.parametrize(("block", "allowed"), [(4, 0.015), (8, 0.02)])
def test_accuracy_at_three_quarters_zero_blocks_stays_near_dense(block, allowed):
    # A small edition of benchmarks/digits_accuracy.py: three of its five seeds.
    gaps = []
    for seed in range(3):
        data = load("digits", seed)
        config = TrainConfig(seed=seed)
        dense = train(mlp(seed, 128), data, SparsityMethod(), config).accuracy
        model = factorize(mlp(seed, 128), block, 4, exclude=["4"])
        gaps.append(dense - train(model, data, GradualPruning(0.75), config).accuracy)
    assert sum(gaps) / len(gaps) <= allowed


@pytest.mark.slow
def test_a_teacher_brings_rank_four_near_block_magnitude_pruning_at_ninety_percent():
    # The hardest cell of benchmarks/digits_accuracy.py, two of its seeds.
    gaps = []
    for seed in range(2):
        data, config = load("digits", seed), TrainConfig(seed=seed)
        pruned = train(mlp(seed, 128), data, BlockPruning(0.9, 8, ["4"]), config).accuracy
        teacher = mlp(seed + 100, 128)
        train(teacher, data, SparsityMethod(), config)
        model = factorize(mlp(seed, 128), 8, 4, exclude=["4"])
        loss = distillation_loss(teacher)
        student = Trainer(model, data, GradualPruning(0.9), config, loss).fit()
        assert student.sparsity == pytest.approx(0.9, abs=0.005)
        gaps.append(pruned - student.accuracy)
    assert sum(gaps) / len(gaps) <= 0.015

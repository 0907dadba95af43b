"""The callbacks shown in docs/training.md do what the training loop does."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from bscompile.models import BlockSparseLinear, GradualPruning
from bscompile.models.train import parameter_groups

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def callback(base):
    """The class in the documentation's block that derives from ``base``."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    (source,) = (block for block in blocks if f"({base})" in block)
    lightning = SimpleNamespace(Callback=object)
    names = {"transformers": transformers, "lightning": lightning}
    exec(source, names)
    return names["Sparsify"]


def prepared():
    torch.manual_seed(0)
    model = nn.Sequential(BlockSparseLinear(16, 16, 4, 2))
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2), lr=1e-2)
    return model, optimizer, GradualPruning(0.75)


def learn(model, optimizer):
    optimizer.zero_grad()
    (model(torch.randn(8, 16)) - 1).square().mean().backward()
    optimizer.step()


def check(model, method):
    assert method.finished
    assert model[0].S.eq(0).double().mean() == 0.75
    assert model[0].sparsity == 0.75


@pytest.mark.parametrize("steps", [1, 5])
def test_transformers_callback(steps):
    model, optimizer, method = prepared()
    hook = callback("transformers.TrainerCallback")(method, epochs=4)
    state = transformers.TrainerState(epoch=0.0)
    hook.on_train_begin(None, state, None, model=model)
    for epoch in range(6):
        for step in range(steps):
            learn(model, optimizer)
            state.epoch = epoch + (step + 1) / steps
            hook.on_step_end(None, state, None, optimizer=optimizer)
        hook.on_epoch_end(None, state, None)
        assert method.finished == (epoch >= 3)
    check(model, method)


def test_lightning_callback():
    model, optimizer, method = prepared()
    hook = callback("lightning.Callback")(method, epochs=4)
    trainer = SimpleNamespace(
        optimizers=[optimizer], global_step=0, num_training_batches=5, current_epoch=0
    )
    hook.on_fit_start(trainer, model)
    for epoch in range(6):
        trainer.current_epoch = epoch
        for _ in range(5):
            learn(model, optimizer)
            hook.on_train_batch_end(trainer, model, None, None, 0)
            trainer.global_step += 1
        hook.on_train_epoch_end(trainer, model)
    check(model, method)

"""The callbacks shown in docs/training.md do in other loops what ours does.

With the real packages where they are installed; stand-ins hold the order of the calls elsewhere.
"""

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


def callback(base, lightning=None):
    """The class in the documentation's block that derives from ``base``."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    (source,) = (block for block in blocks if f"({base})" in block)
    stand_in = SimpleNamespace(Callback=object)
    names = {"transformers": transformers, "lightning": lightning or stand_in}
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
    trainer = SimpleNamespace(optimizers=[optimizer], num_training_batches=5, current_epoch=0)
    hook.on_fit_start(trainer, model)
    for epoch in range(6):
        trainer.current_epoch = epoch
        for index in range(5):
            learn(model, optimizer)
            hook.on_train_batch_end(trainer, model, None, None, index)
        hook.on_train_epoch_end(trainer, model)
    check(model, method)


class Spied(GradualPruning):
    """Notes what it is told."""

    def __init__(self, sparsity):
        super().__init__(sparsity)
        self.told = []

    def on_step(self, learning_rate, progress):
        self.told.append(progress)

    def on_epoch(self, progress):
        super().on_epoch(progress)
        self.told.append(("epoch", progress))


def told_by_our_loop(epochs, steps):
    told = []
    for epoch in range(epochs):
        told += [pytest.approx(epoch / epochs + (i + 1) / (epochs * steps)) for i in range(steps)]
        told.append(("epoch", (epoch + 1) / epochs))
    return told


@pytest.mark.filterwarnings("ignore")  # of another package about itself
def test_a_lightning_trainer_tells_the_method_what_our_loop_does(tmp_path):
    lightning = pytest.importorskip("lightning")
    model, _, _ = prepared()
    method = Spied(0.75)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = model

        def training_step(self, batch, index):
            return (self.body(batch[0]) - 1).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(parameter_groups(self, 1e-2), lr=1e-2)

    rows = torch.utils.data.TensorDataset(torch.randn(24, 16))
    trainer = lightning.Trainer(
        max_epochs=6,
        accelerator="cpu",
        callbacks=[callback("lightning.Callback", lightning)(method, epochs=4)],
        default_root_dir=tmp_path,
        **dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        ),
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(rows, batch_size=8))
    assert method.told == told_by_our_loop(4, 3)
    check(model, method)


class Classifier(nn.Module):
    """As the Trainer of transformers wants a model: it computes its own loss."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return {"loss": (self.body(x) - 1).square().mean()}


@pytest.mark.filterwarnings("ignore")
def test_a_transformers_trainer_tells_the_method_what_our_loop_does(tmp_path):
    pytest.importorskip("accelerate")
    model, optimizer, _ = prepared()
    method = Spied(0.75)
    rows = [{"x": torch.randn(16)} for _ in range(24)]
    arguments = transformers.TrainingArguments(
        tmp_path,
        num_train_epochs=6,
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(
        Classifier(model),
        arguments,
        train_dataset=rows,
        optimizers=(optimizer, None),
        callbacks=[callback("transformers.TrainerCallback")(method, epochs=4)],
    )
    trainer.train()
    assert method.told == told_by_our_loop(4, 3)
    check(model, method)

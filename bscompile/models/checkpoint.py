"""Checkpoints in safetensors: the model, the optimizer, the masks and where training stood.

Tensors only, and one JSON header; nothing in the file can run. Written beside the target and
renamed, so that an interrupted write leaves the last good checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bscompile.errors import StorageError, UsageError
from bscompile.files import write_atomically

if TYPE_CHECKING:
    from bscompile.models.train import Trainer

FORMAT = "bscompile-training-1"


def fingerprint(trainer: Trainer) -> dict[str, str]:
    """What must agree for training to go on: configuration, method, tensors of the model."""
    shapes = {name: list(t.shape) for name, t in trainer.model.state_dict().items()}
    method = trainer.method
    return {
        "config": json.dumps(asdict(trainer.config), sort_keys=True),
        "method": f"{type(method).__name__} sparsity={method.schedule.target:g}",
        "model": json.dumps(shapes, sort_keys=True),
    }


def save_checkpoint(path: Path, trainer: Trainer) -> None:
    """Write the state after an epoch.

    Raises:
        StorageError: The file cannot be written.
    """
    tensors = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    optimizer = trainer.optimizer.state_dict()["state"]
    tensors |= {f"adam.{i}.{k}": v for i, state in optimizer.items() for k, v in state.items()}
    tensors |= {f"mask.{layer.name}": layer.mask for layer in trainer.method.layers}
    tensors["shuffle"] = trainer.shuffle.get_state()
    result = asdict(trainer.result)
    header = fingerprint(trainer) | {
        "format": FORMAT,
        "done": str(trainer.done),
        "finished": str(int(trainer.method.finished)),
        "result": json.dumps(result),
    }
    # Clones, since layers may share tensors, which safetensors refuses.
    copies = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    write_atomically(path, save(copies, header))


def load_checkpoint(path: Path, trainer: Trainer) -> None:
    """Put a trainer back to where the checkpoint stood.

    Raises:
        StorageError: The file is no checkpoint of this library.
        UsageError: It was made with another model, method or configuration.
    """
    header, tensors = _read(path)
    for part, mine in fingerprint(trainer).items():
        if header.get(part) != mine:
            raise UsageError(
                f"{path}: checkpoint of another {part}: {_difference(header.get(part), mine)}",
                hint="use the options it was made with, or delete it to begin anew",
            )
    from bscompile.models.train import EpochLog, TrainResult

    trainer.model.load_state_dict(_under("model.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("adam.", tensors).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    for layer in trainer.method.layers:
        layer.mask.copy_(tensors[f"mask.{layer.name}"])
    trainer.shuffle.set_state(tensors["shuffle"])
    trainer.done = int(header["done"])
    trainer.method.finished = header["finished"] == "1"
    result = json.loads(header["result"])
    history = [EpochLog(**log) for log in result.pop("history")]
    trainer.result = TrainResult(history=history, **result)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot read the checkpoint: {error}") from error
    if header.get("format") != FORMAT:
        raise StorageError(f"{path}: wanted a {FORMAT} file, got {header.get('format')!r}")
    return header, tensors


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _difference(theirs: str | None, mine: str) -> str:
    """The first entry in which two descriptions differ."""
    try:
        left: dict[str, Any] = json.loads(theirs or "{}")
        right: dict[str, Any] = json.loads(mine)
    except json.JSONDecodeError:
        return f"it has {theirs}, now {mine}"
    keys = [key for key in sorted({*left, *right}) if left.get(key) != right.get(key)]
    return "; ".join(f"{k} was {left.get(k)}, now {right.get(k)}" for k in keys[:3])

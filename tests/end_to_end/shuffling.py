"""Transformer layers trained in blocks whose hidden features somebody has shuffled since.

``zero`` makes the linear weights of a family zero in blocks, ``shuffle`` gives the hidden features
another order without changing what the model computes: those between the two layers of a
feed-forward pair, those of each head of queries and keys, and of values and the layer after them;
``stream`` also those of the residual stream (of ViT).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def zero(module: nn.Module, block: int, density: float, seed: int = 0) -> nn.Module:
    """Zero all but a share of the blocks of every linear layer but the last."""
    rng = np.random.default_rng(seed)
    for _, layer in list(_linear(module).items())[:-1]:
        out, inner = layer.weight.shape
        mask = rng.random((out // block, inner // block)) < density
        mask[:, rng.integers(mask.shape[1])] = True  # no row is dead
        mask[rng.integers(mask.shape[0])] = True  # no column is
        layer.weight.data *= torch.from_numpy(np.kron(mask, np.ones((block, block)))).float()
    return module


def shuffle(module: nn.Module, heads: int, seed: int = 1, stream: bool = False) -> nn.Module:
    """The same function with its hidden features in a random order."""
    rng = np.random.default_rng(seed)
    layers = _linear(module)
    for name, first in layers.items():
        if name.endswith(("intermediate.dense", "mlp.fc1")):
            second = _after(layers, name)
            _reorder(rng.permutation(first.out_features), [first], [second])
        if name.endswith(("query", "q_proj")):
            stem = name.rsplit(".", 1)[0]
            query, key, value = (
                _ending(layers, stem, ends)
                for ends in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
            )
            width = query.out_features // heads
            cells = [h * width + rng.permutation(width) for h in range(heads)]
            _reorder(np.concatenate(cells), [query, key], [])
            cells = [h * width + rng.permutation(width) for h in range(heads)]
            _reorder(np.concatenate(cells), [value], [_output(layers, stem)])
    if stream:
        _shuffle_stream(module, rng)
    return module


def shuffle_fused(module: nn.Module, heads: int, block: int, seed: int = 0) -> nn.Module:
    """The same function of attention whose queries, keys and values are one parameter.

    First all of them and the projection after them are made zero in blocks; then the features of
    each head are shuffled. For torch's MultiheadAttention and GPT-2's c_attn.
    """
    rng = np.random.default_rng(seed)
    named = dict(module.named_parameters())
    for name, fused in named.items():
        if not name.endswith(("in_proj_weight", "c_attn.weight")):
            continue
        turned = name.endswith("c_attn.weight")  # [in, out]
        stem = name.rsplit(".", 1)[0] if not turned else name.removesuffix(".c_attn.weight")
        after = named[f"{stem}.c_proj.weight" if turned else f"{stem}.out_proj.weight"]
        size = min(fused.shape)
        cells = [
            np.concatenate(
                [h * (size // heads) + rng.permutation(size // heads) for h in range(heads)]
            )
            for _ in "kv"
        ]
        rows = torch.from_numpy(np.concatenate([cells[0], size + cells[0], 2 * size + cells[1]]))
        for weight, order, axis in (
            (fused, rows, int(turned)), (after, torch.from_numpy(cells[1]), int(not turned)),
        ):  # fmt: skip
            mask = rng.random([side // block for side in weight.shape]) < 0.3
            weight.data *= torch.from_numpy(np.kron(mask, np.ones((block, block)))).float()
            weight.data = weight.data.index_select(axis, order)
        bias = named[name.replace("weight", "bias")]
        bias.data = torch.from_numpy(rng.standard_normal(3 * size)).float()[rows]
    return module


def _shuffle_stream(module: nn.Module, rng: np.random.Generator) -> None:
    """Another order of the features that run through all residual sums."""
    width = next(m for m in module.modules() if isinstance(m, nn.LayerNorm)).weight.shape[0]
    order = torch.from_numpy(rng.permutation(width))
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.weight.data = layer.weight.data[order]
            layer.bias.data = layer.bias.data[order]
    for name, layer in _linear(module).items():
        if layer.in_features == width and not name.endswith("o_proj"):  # that reads the values
            layer.weight.data = layer.weight.data[:, order]
        if name.endswith(("o_proj", "fc2")):
            layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]
    for layer in module.modules():
        if isinstance(layer, nn.Embedding):
            layer.weight.data = layer.weight.data[:, order]
        elif isinstance(layer, nn.Conv2d):
            layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]
    for name, parameter in module.named_parameters():
        if name.endswith(("cls_token", "position_embeddings")):
            parameter.data = parameter.data[..., order]


def _linear(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}


def _after(layers: dict[str, nn.Linear], name: str) -> nn.Linear:
    names = list(layers)
    return layers[names[names.index(name) + 1]]


def _ending(layers: dict[str, nn.Linear], stem: str, ends: tuple[str, ...]) -> nn.Linear:
    return next(layer for n, layer in layers.items() if n.startswith(stem) and n.endswith(ends))


def _output(layers: dict[str, nn.Linear], stem: str) -> nn.Linear:
    """The layer after the values: ``..attention.o_proj``, or ``..attention.output.dense``."""
    return next(
        layer
        for name, layer in layers.items()
        if name in (f"{stem}.o_proj", f"{stem.removesuffix('.self')}.output.dense")
    )


def _reorder(order: np.ndarray, makers: list[nn.Linear], readers: list[nn.Linear]) -> None:
    index = torch.from_numpy(order)
    for layer in makers:
        layer.weight.data = layer.weight.data[index]
        if layer.bias is not None:
            layer.bias.data = layer.bias.data[index]
    for layer in readers:
        layer.weight.data = layer.weight.data[:, index]

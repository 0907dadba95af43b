"""The model families that the road must carry, as ONNX files with random weights by seed.

``export`` writes a family once; ``with_weights`` gives the same graph other weights: zero in
blocks, merged Kronecker sums, or dense. Nothing is downloaded: transformers builds its
architectures from a configuration.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture: how to make it, what to feed it, which dimensions may vary."""

    name: str
    make: Callable[[bool], nn.Module]  # full size or small
    inputs: Callable[[bool, int], dict[str, torch.Tensor]]  # (full size, batch)
    dynamic: tuple[dict[int, str], ...] = ({0: "batch"},)


class _Logits(nn.Module):
    """A transformers model whose output is one tensor and whose inputs are positional."""

    def __init__(self, body: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.body, self.names = body, names

    def forward(self, *inputs):
        return self.body(**dict(zip(self.names, inputs, strict=True)), return_dict=False)[0]


def _mlp(full: bool) -> nn.Module:
    width = 1024 if full else 64
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def _lenet5(full: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def _vit(full: bool) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    size = (
        {"image_size": 224, "num_hidden_layers": 12}
        if full
        else {"image_size": 64, "num_hidden_layers": 2}
    )
    config = ViTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=100,
        attn_implementation="eager", **size,
    )  # fmt: skip
    return _Logits(ViTForImageClassification(config), ("pixel_values",))


def _swin(full: bool) -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    size = (
        {"image_size": 224, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
        if full
        else {
            "image_size": 64, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4],
            "window_size": 4,
        }
    )  # fmt: skip
    config = SwinConfig(num_labels=100, attn_implementation="eager", **size)
    return _Logits(SwinForImageClassification(config), ("pixel_values",))


def _bert(full: bool) -> nn.Module:
    from transformers import BertConfig, BertModel

    size = {} if full else {
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 256, "vocab_size": 500,
    }  # fmt: skip
    config = BertConfig(attn_implementation="eager", **size)
    return _Logits(BertModel(config, add_pooling_layer=False), ("input_ids", "attention_mask"))


def _llama(full: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    size = (
        {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
        if full
        else {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4}
    )
    config = LlamaConfig(
        num_hidden_layers=2, vocab_size=1000, attn_implementation="eager", use_cache=False,
        **size,
    )  # fmt: skip
    return _Logits(LlamaModel(config), ("input_ids",))


def _features(full: bool, batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 64)}


def _digits(full: bool, batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 1, 28, 28)}


def _image(full: bool, batch: int) -> dict[str, torch.Tensor]:
    side = 224 if full else 64
    return {"pixel_values": torch.randn(batch, 3, side, side)}


def _tokens(vocabulary: int, mask: bool) -> Callable[[bool, int], dict[str, torch.Tensor]]:
    def make(full: bool, batch: int) -> dict[str, torch.Tensor]:
        length = 128 if full else 24
        words = {"input_ids": torch.randint(0, vocabulary, (batch, length))}
        if mask:
            words["attention_mask"] = torch.ones(batch, length, dtype=torch.int64)
        return words

    return make


_SEQUENCE = {0: "batch", 1: "sequence"}
FAMILIES = {
    family.name: family
    for family in (
        Family("mlp", _mlp, _features),
        Family("lenet5", _lenet5, _digits),
        Family("vit", _vit, _image),
        Family("swin", _swin, _image),
        Family("bert", _bert, _tokens(500, mask=True), (_SEQUENCE, _SEQUENCE)),
        Family("llama", _llama, _tokens(1000, mask=False), (_SEQUENCE,)),
    )
}


def _as_made(module: nn.Module) -> nn.Module:
    return module


def export(
    family: Family,
    path: Path,
    *,
    full: bool = False,
    dynamic: bool = False,
    dynamo: bool = True,
    batch: int = 2,
    change: Callable[[nn.Module], nn.Module] = _as_made,
) -> Path:
    """Write a family as ONNX; ``change`` may replace layers before the export.

    What needs no change is exported once by each process.
    """
    if change is _as_made:
        path.write_bytes(_exported(family, full, dynamic, dynamo, batch))
        torch.manual_seed(0)  # random inputs that follow do not depend on who exported first
    else:
        _export(family, path, full, dynamic, dynamo, batch, change)
    return path


@cache
def _exported(family: Family, full: bool, dynamic: bool, dynamo: bool, batch: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _export(family, path, full, dynamic, dynamo, batch, _as_made)
        return path.read_bytes()


def _export(
    family: Family,
    path: Path,
    full: bool,
    dynamic: bool,
    dynamo: bool,
    batch: int,
    change: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(0)
    module = change(family.make(full)).eval()
    inputs = family.inputs(full, batch)
    names = list(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes: dict[str, object] = {}
        if dynamic and dynamo:
            shapes = tuple(
                {axis: torch.export.Dim(name) for axis, name in dims.items()}
                for dims in family.dynamic
            )
            if isinstance(module, _Logits):  # its forward takes *inputs: one nested tuple
                axes["dynamic_shapes"] = (shapes,)
            else:
                axes["dynamic_shapes"] = shapes
        elif dynamic:
            axes["dynamic_axes"] = dict(zip(names, family.dynamic, strict=True))
        torch.onnx.export(
            module, tuple(inputs.values()), str(path), input_names=names, output_names=["y"],
            dynamo=dynamo, verbose=False,
            **({"external_data": False} if dynamo else {"opset_version": 17}), **axes,
        )  # fmt: skip


def with_weights(model: onnx.ModelProto, change: Callable[[np.ndarray], np.ndarray]):
    """A copy whose linear weights W [out, in] are ``change``d; other initializers stay."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    transposed: dict[str, bool] = {}
    sides: set[str] = set()
    for node in copy.graph.node:
        if node.op_type == "MatMul":
            transposed[node.input[1]] = True
        elif node.op_type == "Gemm":
            trans = any(a.name == "transB" and a.i for a in node.attribute)
            transposed[node.input[1]] = not trans
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            sides.update(node.input[1:3])
    for tensor in copy.graph.initializer:
        if tensor.name in sides:  # [directions, out, in]
            whole = np.stack([change(side) for side in numpy_helper.to_array(tensor)])
            tensor.CopyFrom(numpy_helper.from_array(whole, tensor.name))
        if tensor.name not in transposed or len(tensor.dims) != 2:
            continue
        weight = numpy_helper.to_array(tensor)
        turn = transposed[tensor.name]
        new = change(weight.T if turn else weight).astype(weight.dtype)
        tensor.CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(new.T if turn else new), tensor.name)
        )
    return copy


def zero_blocks(block: tuple[int, int], density: float, seed: int = 0):
    """W with all but about ``density`` of its blocks zero; edges that do not divide included."""
    rng = np.random.default_rng(seed)

    def change(weight: np.ndarray) -> np.ndarray:
        grid = [-(-side // b) for side, b in zip(weight.shape, block, strict=True)]
        mask = np.kron(rng.random(grid) < density, np.ones(block, bool))
        return weight * mask[: weight.shape[0], : weight.shape[1]]

    return change


def merged_kronecker(block: tuple[int, int], rank: int, density: float, seed: int = 0):
    """A merged sum of Kronecker products of about the same scale, where the block divides."""
    rng = np.random.default_rng(seed)

    def change(weight: np.ndarray) -> np.ndarray:
        (out, inner), (bh, bw) = weight.shape, block
        if out % bh or inner % bw:
            return weight
        grid = (out // bh, inner // bw)
        support = rng.random(grid) < density
        total = sum(
            np.kron(support * rng.standard_normal(grid), rng.standard_normal(block))
            for _ in range(rank)
        )
        return total * (weight.std() / max(total.std(), 1e-12))

    return change


#: Kinds of weights that a family is given; together they meet every block that the road promises.
WEIGHTS = {
    "dense": lambda w: w,
    "4x4": zero_blocks((4, 4), 0.2),
    "16x16": zero_blocks((16, 16), 0.2),
    "8x4": zero_blocks((8, 4), 0.2),
    "32x1": zero_blocks((32, 1), 0.2),
    "kronecker": merged_kronecker((8, 8), 2, 0.3),
}

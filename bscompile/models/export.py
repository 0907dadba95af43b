"""To ONNX, with the structure visible: as two products by factors, or as W with zero blocks.

How factorized layers are written, convolutions too: ``spelling``.
Metadata of the model lists each layer's block and rank; hints, on which nothing depends.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from bscompile.errors import UsageError
from bscompile.files import write_atomically
from bscompile.models.conv import BlockSparseConv2d
from bscompile.models.convert import merge, replace_modules
from bscompile.models.layers import BlockSparseLinear, block_sparse_layers
from bscompile.models.spelling import spell

ExportForm = Literal["factorized", "merged"]
METADATA_PREFIX = "bscompile.layer."


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example: Tensor | tuple[Tensor, ...],
    form: ExportForm = "factorized",
    dynamic_batch: bool = True,
) -> Path:
    """Write a trained model as ONNX; the model itself is left as it is.

    Args:
        model: With factorized layers, or any other module.
        path: Where to write; replaced only when the file is complete.
        example: Inputs to trace with, first axis the batch.
        form: ``"factorized"`` keeps the factors, ``"merged"`` builds W with exact zero blocks.
        dynamic_batch: Whether the first axis of every input may vary.

    Returns:
        The path.

    Raises:
        UsageError: The form is unknown.
        StorageError: The file cannot be written.
    """
    if form not in get_args(ExportForm):
        raise UsageError(f"form: wanted 'factorized' or 'merged', got {form!r}")
    path = Path(path)
    inputs = example if isinstance(example, tuple) else (example,)
    hints = layer_hints(model, form)
    spelled = _spell(model, form).eval()
    proto = _trace(spelled, inputs, dynamic_batch)
    onnx.helper.set_model_props(proto, hints)
    write_atomically(path, proto.SerializeToString())
    return path


def layer_hints(model: nn.Module, form: ExportForm) -> dict[str, str]:
    """Per layer: block, rank, live blocks, a checksum of the pattern, and the spelling, as JSON."""
    hints = {}
    for name, layer in block_sparse_layers(model):
        support = layer.support()
        bits = np.packbits(support.cpu().numpy())
        hints[METADATA_PREFIX + name] = json.dumps(
            {
                "block": list(layer.block),
                "rank": layer.rank,
                "live_blocks": int(support.sum()),
                "pattern_crc32": zlib.crc32(bits.tobytes()),
                "form": form,
            }
        )
    return hints


def _spell(model: nn.Module, form: ExportForm) -> nn.Module:
    """A copy of the model in which no factorized layer is left."""
    spelled = copy.deepcopy(model)
    if form == "factorized":
        kinds = BlockSparseLinear | BlockSparseConv2d
        layers = [m for m in spelled.modules() if isinstance(m, kinds)]
        spelled = replace_modules(spelled, {id(m): spell(m) for m in layers})
    return merge(spelled)


def _trace(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> onnx.ModelProto:
    # A batch of one would be burnt in as a constant.
    if dynamic_batch:
        inputs = tuple(torch.cat([t, t]) if t.shape[0] == 1 else t for t in inputs)
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in inputs) if dynamic_batch else None
    with _quiet():
        program = torch.onnx.export(
            model, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself; its errors still come through."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)

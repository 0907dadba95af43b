"""To ONNX, with the structure visible: as two products by factors, or as W with zero blocks.

Factorized spelling of a layer, S folded into A (Reshape, MatMul, Transpose only):

    x [N, n] -> [N, n1, bw] -> @ B [bw, r bh] -> [N, n1, r, bh] -> [N, bh, r, n1]
      -> [N bh, r n1] -> @ C [r n1, m1] -> [N, bh, m1] -> [N, m1, bh] -> [N, m]

Convolutions are exported with W built in both forms: ONNX has no product over patches.
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
from bscompile.models.convert import merge, replace_modules
from bscompile.models.layers import BlockSparseLinear, block_sparse_layers

ExportForm = Literal["factorized", "merged"]
METADATA_PREFIX = "bscompile.layer."


class _FactorizedSpelling(nn.Module):
    """The layer as the exporter shall see it: constants in their final layout."""

    def __init__(self, layer: BlockSparseLinear) -> None:
        super().__init__()
        (bh, bw), r = layer.block, layer.rank
        m1, n1 = layer.mask.shape
        self.sizes = m1, n1, bh, bw, r
        with torch.no_grad():
            side_by_side = layer.B.permute(2, 0, 1).reshape(bw, r * bh)
            stacked = layer.coefficients().permute(0, 2, 1).reshape(r * n1, m1)
        # Parameters, not buffers: the exporter keeps parameters as initializers by name.
        self.patterns = nn.Parameter(side_by_side.clone(), requires_grad=False)
        self.coefficients = nn.Parameter(stacked.clone(), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        m1, n1, bh, bw, r = self.sizes
        rows = 1
        for size in x.shape[:-1]:
            rows = rows * size
        z = x.reshape(rows, n1, bw) @ self.patterns
        z = z.reshape(rows, n1, r, bh).permute(0, 3, 2, 1)
        y = z.reshape(rows * bh, r * n1) @ self.coefficients
        y = y.reshape(rows, bh, m1).transpose(1, 2).reshape(*x.shape[:-1], m1 * bh)
        return y if self.bias is None else y + self.bias


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
        spelled = form if isinstance(layer, BlockSparseLinear) else "merged"
        bits = np.packbits(support.cpu().numpy())
        hints[METADATA_PREFIX + name] = json.dumps(
            {
                "block": list(layer.block),
                "rank": layer.rank,
                "live_blocks": int(support.sum()),
                "pattern_crc32": zlib.crc32(bits.tobytes()),
                "form": spelled,
            }
        )
    return hints


def _spell(model: nn.Module, form: ExportForm) -> nn.Module:
    """A copy of the model in which no factorized layer is left."""
    spelled = copy.deepcopy(model)
    if form == "factorized":
        linears = [m for m in spelled.modules() if isinstance(m, BlockSparseLinear)]
        spelled = replace_modules(spelled, {id(m): _FactorizedSpelling(m) for m in linears})
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

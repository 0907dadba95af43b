"""Real exports of torch: every linear layer is recognised and the model means the same."""

import logging

import onnx
import pytest
import torch
from torch import nn

from bscompile.dialect import is_dialect, read_node
from bscompile.importer import load_model
from bscompile.passes import pipeline
from tests.end_to_end.families import FAMILIES, Family, export, with_weights, zero_blocks
from tests.passes.helpers import keep_form, run_ort
from tests.tolerance import assert_close

ENCODER = Family(
    "encoder",
    lambda full: nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu"),
    lambda full, batch: {"src": torch.randn(batch, 6, 64)},
)
EVERY = {**FAMILIES, "encoder": ENCODER}
#: family -> linear layers and convolutions, as torch counts them; queries, keys, values are three
LAYERS = {"mlp": 3, "lenet5": 5, "vit": 14, "swin": 27, "bert": 12, "llama": 14, "encoder": 6}

CASES = [
    ("mlp", True, False),
    ("mlp", False, True),
    ("lenet5", True, True),
    ("lenet5", False, False),
    ("encoder", True, False),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("vit", True, True),
            ("vit", False, False),
            ("bert", True, False),
            ("bert", True, True),
            ("swin", True, False),
            ("llama", True, False),
        )
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _quiet_exporter():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("name", "dynamo", "dynamic"), CASES)
def test_every_layer_is_recognised_and_the_numbers_stay(tmp_path, name, dynamo, dynamic):
    block = (8, 4)
    family = EVERY[name]
    path = export(family, tmp_path / "m.onnx", dynamo=dynamo, dynamic=dynamic)
    proto = with_weights(onnx.load(path), zero_blocks(block, 0.2))
    model = load_model(proto)
    notes = pipeline.run(model, pipeline.pipeline(keep_form))
    ops = [read_node(node) for node in model.graph if is_dialect(node)]
    assert len(ops) == LAYERS[name], [note for note in notes if not note.applied]
    matmuls = [op for op in ops if op.conv is None]
    assert all(op.form == "block_sparse" for op in matmuls)
    assert block in {op.weight.block for op in matmuls}
    assert len({op.name for op in ops}) == len(ops)
    for batch in (1, 3) if dynamic else (2,):
        torch.manual_seed(batch)
        wanted = {value.name for value in model.graph.inputs}
        feeds = {k: v.numpy() for k, v in family.inputs(False, batch).items() if k in wanted}
        for got, want in zip(run_ort(model, feeds), run_ort(proto, feeds), strict=True):
            assert_close(got, want, want.dtype, 256)


def test_gelu_and_residuals_of_an_encoder_are_fused(tmp_path):
    path = export(ENCODER, tmp_path / "m.onnx")
    model = load_model(onnx.load(path))
    pipeline.run(model, pipeline.pipeline(keep_form))
    epilogues = [read_node(node).epilogue for node in model.graph if is_dialect(node)]
    assert ("bias", "gelu") in epilogues
    assert epilogues.count(("bias", "residual")) >= 1

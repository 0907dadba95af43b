"""What users bring along: equal to onnxruntime, dense and with zero blocks."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import bscompile
from tests.end_to_end.families import export, with_weights, zero_blocks
from tests.end_to_end.wider import WIDER
from tests.tolerance import assert_close


@pytest.mark.parametrize("name", WIDER)
def test_equal_to_onnxruntime(name, tmp_path):
    family = WIDER[name]
    source = onnx.load(export(family, tmp_path / "source.onnx"))
    path = tmp_path / "model.onnx"
    onnx.save(with_weights(source, zero_blocks((8, 8), 0.3)), path)
    torch.manual_seed(1)
    feeds = {key: value.numpy() for key, value in family.inputs(False, 2).items()}
    loaded = bscompile.load(bscompile.build(path).save(tmp_path / "model.bsc"))
    (want,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)
    (got,) = loaded.run(feeds).values()
    assert_close(got, want, np.float32, 64 * 64)

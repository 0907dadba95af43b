"""Recurrent operators of a fixed number of steps become linear layers that everyone knows."""

import numpy as np
import onnxruntime as ort
import pytest

import bscompile
from bscompile.errors import ModelError
from bscompile.importer import load_model
from tests.passes.helpers import check_equal
from tests.recurrences import recurrent
from tests.tolerance import assert_close


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})],
)
@pytest.mark.parametrize("full", [True, False])
def test_equal_to_onnxruntime(op, attributes, direction, full):
    proto, feeds = recurrent(op, bias=full, initial=full, direction=direction, **attributes)
    model = load_model(proto)
    assert not {"LSTM", "GRU", "RNN"} & {node.op_type for node in model.graph}
    check_equal(proto, model, feeds)


def test_an_rnn_of_relu():
    proto, feeds = recurrent("RNN", activations=["Relu"])
    check_equal(proto, load_model(proto), feeds)


@pytest.mark.parametrize(
    ("steps", "attributes"),
    [("time", {}), (300, {}), (5, {"clip": 3.0}), (5, {"activations": ["Relu", "Tanh", "Tanh"]})],
)
def test_what_stays_is_declined_with_what_to_do(steps, attributes, tmp_path):
    proto, _ = recurrent("LSTM", steps=steps, **attributes)
    with pytest.raises(ModelError, match="fixed length of at most 256"):
        bscompile.build(proto)


def test_a_symbolic_length_may_be_fixed():
    proto, _ = recurrent("GRU", steps="time")
    model = load_model(proto, {"time": 5})
    assert "GRU" not in {node.op_type for node in model.graph}


def test_gates_are_read_where_the_product_lies():
    proto, _ = recurrent("LSTM", steps=3)
    kinds = [node.op_type for node in load_model(proto).graph]
    assert kinds.count("Slice") >= 3 * 4
    assert kinds.count("Split") == 2  # by step, and the two parts of the bias


def test_zero_blocks_of_the_recurrent_weight_are_found(tmp_path):
    proto, feeds = recurrent("LSTM", steps=5, hidden=64, inner=32, live=0.1)
    compiled = bscompile.build(proto)
    assert {"block_sparse"} <= {layer.form for layer in compiled.report.layers}
    model = bscompile.load(compiled.save(tmp_path / "m.bsc"))
    peer = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (3, 1):
        cut = {n: np.ascontiguousarray(a[:, :batch]) for n, a in feeds.items()}
        for got, want in zip(model.run(cut).values(), peer.run(None, cut), strict=True):
            assert_close(got, want, np.float32, 5 * 64)

"""Recurrent operators of a fixed number of steps become linear layers that everyone knows."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import bscompile
from bscompile.errors import ModelError
from bscompile.importer import load_model
from tests.passes.helpers import check_equal
from tests.tolerance import assert_close

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op, steps=5, bias=True, initial=True, live=None, inner=6, hidden=8, **attributes):
    """A model of one node with random weights; ``live`` are the blocks of R to keep."""
    rng = np.random.default_rng(3)
    sides = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op] * hidden
    tensors = {
        "w": rng.standard_normal((sides, rows, inner)),
        "r": rng.standard_normal((sides, rows, hidden)),
        "b": rng.standard_normal((sides, 2 * rows)),
    }
    if live is not None:
        mask = np.kron(rng.random((sides, rows // 8, hidden // 8)) < live, np.ones((1, 8, 8)))
        tensors["r"] *= mask
    states = ["h", "c"][: 2 if op == "LSTM" else 1] if initial else []
    inputs = ["x", "w", "r", "b" if bias else "", "", *states]
    outputs = ["y", "yh", "yc"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, inputs, outputs, hidden_size=hidden, **attributes)
    of = helper.make_tensor_value_info
    shape = [sides, "batch", hidden]
    graph = helper.make_graph(
        [node],
        "g",
        [of("x", 1, [steps, "batch", inner]), *(of(s, 1, shape) for s in states)],
        [of("y", 1, [steps, *shape]), *(of(name, 1, shape) for name in outputs[1:])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in tensors.items()],
    )
    if not bias:
        del graph.initializer[2]
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": rng.standard_normal((5, 3, inner)).astype(np.float32)}
    feeds |= {s: rng.standard_normal((sides, 3, hidden)).astype(np.float32) for s in states}
    return proto, feeds


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

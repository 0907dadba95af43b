"""Models of one recurrent layer with random weights, and what they compute in float64."""

import numpy as np
from onnx import helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(
    op, steps=5, bias=True, initial=True, live=None, inner=6, hidden=8, batch="batch", **attributes
):
    """A model of one node and inputs for a batch of 3; ``live`` is the share of R's blocks kept.

    Of those the first block row is always empty.
    """
    rng = np.random.default_rng(3)
    sides = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op] * hidden
    tensors = {
        "w": rng.standard_normal((sides, rows, inner)),
        "r": rng.standard_normal((sides, rows, hidden)) / np.sqrt(hidden),
        "b": rng.standard_normal((sides, 2 * rows)),
    }
    if live is not None:
        blocks = rng.random((sides, rows // 8, hidden // 8)) < live
        blocks[:, 0] = False
        tensors["r"] *= np.kron(blocks, np.ones((1, 8, 8)))
    states = ["h", "c"][: 2 if op == "LSTM" else 1] if initial else []
    inputs = ["x", "w", "r", "b" if bias else "", "", *states]
    outputs = ["y", "yh", "yc"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, inputs, outputs, hidden_size=hidden, **attributes)
    of = helper.make_tensor_value_info
    shape = [sides, batch, hidden]
    graph = helper.make_graph(
        [node],
        "g",
        [of("x", 1, [steps, batch, inner]), *(of(s, 1, shape) for s in states)],
        [of("y", 1, [steps, *shape]), *(of(name, 1, shape) for name in outputs[1:])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in tensors.items()],
    )
    if not bias:
        del graph.initializer[2]
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    length, count = steps if isinstance(steps, int) else 5, batch if isinstance(batch, int) else 3
    feeds = {"x": rng.standard_normal((length, count, inner)).astype(np.float32)}
    feeds |= {s: rng.standard_normal((sides, count, hidden)).astype(np.float32) for s in states}
    return proto, feeds


def in_float64(proto, feeds):
    """The outputs of such a model, from the definition of its operator."""
    (node,) = proto.graph.node
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    tensors = {t.name: numpy_helper.to_array(t).astype(float) for t in proto.graph.initializer}
    x, hidden, gates = feeds["x"].astype(float), given["hidden_size"], GATES[node.op_type]
    backwards = {b"forward": [0], b"reverse": [1]}.get(given.get("direction", b"forward"), [0, 1])
    every, last = [], []
    for side, back in enumerate(backwards):
        w, r = tensors["w"][side], tensors["r"][side]
        b = tensors["b"][side] if "b" in tensors else np.zeros(2 * gates * hidden)
        zeros = np.zeros((x.shape[1], hidden))
        state = [feeds[s][side].astype(float) if s in feeds else zeros for s in ("h", "c")]
        found = np.empty((len(x), x.shape[1], hidden))
        for t in range(len(x))[:: -1 if back else 1]:
            state = _step(node.op_type, given, x[t] @ w.T, r, np.split(b, 2), *state)
            found[t] = state[0]
        every.append(found)
        last.append(state)
    return [np.stack(every, 1), *(np.stack(s) for s in zip(*last, strict=True))]


def _sigmoid(a):
    return 1 / (1 + np.exp(-a))


def _step(op, given, wx, r, biases, h, c):
    count = GATES[op]
    of_x = np.split(wx + biases[0], count, 1)
    of_h = np.split(h @ r.T + biases[1], count, 1)
    if op == "RNN":
        relu = given.get("activations") == [b"Relu"]
        a = of_x[0] + of_h[0]
        return np.maximum(a, 0) if relu else np.tanh(a), c
    sums = [a + b for a, b in zip(of_x, of_h, strict=True)]
    if op == "LSTM":
        i, o, f = map(_sigmoid, sums[:3])
        c = f * c + i * np.tanh(sums[3])
        return o * np.tanh(c), c
    z, reset = map(_sigmoid, sums[:2])
    if given.get("linear_before_reset"):
        n = np.tanh(of_x[2] + reset * of_h[2])
    else:
        late, bias = np.split(r, 3)[2], np.split(biases[1], 3)[2]
        n = np.tanh(of_x[2] + (reset * h) @ late.T + bias)
    return (1 - z) * n + z * h, c

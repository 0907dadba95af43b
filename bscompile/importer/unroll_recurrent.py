"""LSTM, GRU and RNN of a fixed number of steps, written as linear layers and activations.

    a_t = x_t Wᵀ + b + h Rᵀ      for all steps at once as far as x goes, step by step for h
    LSTM   i, o, f = sigmoid(a), g = tanh(a):   c ← f c + i g,   h ← o tanh(c)
    GRU    z, r = sigmoid(a), n = tanh(.. r ..): h ← (1 - z) n + z h
    RNN    h ← tanh(a) or relu(a)

W and R then are weights like any other: zero blocks in them are found, and the steps share them.
Left alone: a symbolic or longer sequence, lengths by batch entry, peepholes, clipping, coupled
gates and activations other than the usual ones.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

MAX_STEPS = 256
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def unroll_recurrent(skeleton: onnx.ModelProto) -> onnx.ModelProto | None:
    """Replace every node that can be; None where there is none.

    Args:
        skeleton: Its shapes inferred, its opset at least 18.
    """
    graph = skeleton.graph
    shapes = {v.name: v.type for v in [*graph.input, *graph.value_info]}
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.node):
        steps = _steps(node, shapes)
        nodes += [node] if steps is None else _Unrolled(node, steps, f"unrolled_{place}").nodes
    if len(nodes) == len(graph.node):
        return None
    result = onnx.ModelProto()
    result.CopyFrom(skeleton)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _steps(node: onnx.NodeProto, shapes: dict[str, onnx.TypeProto]) -> int | None:
    """How many steps a node takes; None where it is not to be unrolled."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _GATES:
        return None
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    optional = [*node.input, "", "", "", "", ""]
    if optional[4] or optional[7] or given.get("clip") or given.get("input_forget"):
        return None
    directions = 2 if given.get("direction", b"forward") == b"bidirectional" else 1
    names = [name.decode() for name in given.get("activations", [])]
    usual = _USUAL[node.op_type] * directions
    if names and names != usual and not (node.op_type == "RNN" and set(names) == {"Relu"}):
        return None
    kind = shapes.get(node.input[0])
    if kind is None or len(kind.tensor_type.shape.dim) != 3:
        return None
    steps = kind.tensor_type.shape.dim[1 if given.get("layout") else 0].dim_value
    return int(steps) if 1 <= steps <= MAX_STEPS and "hidden_size" in given else None


class _Unrolled:
    """The nodes that stand for one node."""

    def __init__(self, node: onnx.NodeProto, steps: int, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix, self._numbers = prefix, count()
        self._op = node.op_type
        self._steps = steps
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._hidden = int(given["hidden_size"])
        self._before_reset = bool(given.get("linear_before_reset"))
        names = given.get("activations", [b"Tanh"])
        self._act = "Relu" if self._op == "RNN" and names[0] == b"Relu" else "Tanh"
        self._inputs = [*node.input, *[""] * (8 - len(node.input))]
        batch_first = bool(given.get("layout"))
        direction = given.get("direction", b"forward")
        x = self._inputs[0]
        self._x = self._add("Transpose", x, perm=[1, 0, 2]) if batch_first else x
        self._initial = [
            self._add("Transpose", s, perm=[1, 0, 2]) if batch_first and s else s
            for s in self._inputs[5:7]
        ]
        backwards = {b"forward": [False], b"reverse": [True]}.get(direction, [False, True])
        found = [self._direction(d, back) for d, back in enumerate(backwards)]
        self._outputs(node, found, batch_first)

    def _direction(self, d: int, backwards: bool) -> tuple[list[str], str, str]:
        """(h of every step, the last h, the last c) of one direction: [B, H] each."""
        gates, hidden = _GATES[self._op], self._hidden
        w, r = (self._turned(self._inputs[i], d) for i in (1, 2))
        gx = self._add("MatMul", self._x, w)
        late = ""
        if self._inputs[3]:
            both = self._part(self._inputs[3], d)
            of_x, of_h = self._cut(both, 2, axis=0)
            if self._op == "GRU" and self._before_reset:
                *_, late = self._cut(of_h, gates, axis=0)
                keep = np.repeat(np.array([1, 1, 0], np.float32), hidden)
                of_h = self._add("Mul", of_h, self._like(keep, of_h))
            gx = self._add("Add", gx, self._add("Add", of_x, of_h))
        each = [self._squeeze(s, 0) for s in self._cut(gx, self._steps, axis=0)]
        h, c = (self._part(s, d) if s else self._zeros() for s in self._initial)
        parts = [r]
        if self._op == "GRU" and not self._before_reset:  # the last gate's product comes later
            parts = self._gates(r, gates)
        steps = [""] * self._steps
        for t in reversed(range(self._steps)) if backwards else range(self._steps):
            if self._op == "LSTM":
                h, c = self._lstm(each[t], h, c, r)
            elif self._op == "GRU":
                h = self._gru(each[t], h, parts, late)
            else:
                h = self._add(self._act, self._add("Add", each[t], self._add("MatMul", h, r)))
            steps[t] = h
        return steps, h, c

    def _lstm(self, gx: str, h: str, c: str, r: str) -> tuple[str, str]:
        add = self._add
        i, o, f, g = self._gates(add("Add", gx, add("MatMul", h, r)), 4)
        i, o, f, g = add("Sigmoid", i), add("Sigmoid", o), add("Sigmoid", f), add("Tanh", g)
        c = add("Add", add("Mul", f, c), add("Mul", i, g))
        return add("Mul", o, add("Tanh", c)), c

    def _gru(self, gx: str, h: str, r: list[str], late: str) -> str:
        add = self._add
        xz, xr, xn = self._gates(gx, 3)
        if self._before_reset:
            hz, hr, hn = self._gates(add("MatMul", h, *r), 3)
            reset = add("Sigmoid", add("Add", xr, hr))
            hn = add("Mul", reset, add("Add", hn, late) if late else hn)
        else:
            rz, rr, rn = r
            hz, hr = add("MatMul", h, rz), add("MatMul", h, rr)
            reset = add("Sigmoid", add("Add", xr, hr))
            hn = add("MatMul", add("Mul", reset, h), rn)
        z, n = add("Sigmoid", add("Add", xz, hz)), add("Tanh", add("Add", xn, hn))
        return add("Add", n, add("Mul", z, add("Sub", h, n)))

    def _outputs(
        self, node: onnx.NodeProto, found: list[tuple[list[str], str, str]], batch_first: bool
    ) -> None:
        wanted = [*node.output, "", "", ""]
        if wanted[0]:  # [steps, directions, B, H], or [B, steps, directions, H]
            each = [self._join(steps, 0) for steps, _, _ in found]
            if batch_first:
                each = [self._add("Transpose", side, perm=[1, 0, 2]) for side in each]
            self._join(each, 2 if batch_first else 1, wanted[0])
        for place, name in enumerate(wanted[1:3]):
            if name:
                states = [(h, c)[place] for _, h, c in found]
                self._join(states, 1 if batch_first else 0, name)

    def _join(self, parts: list[str], axis: int, name: str = "") -> str:
        """Stack along a new axis."""
        axes = self._ints([axis])
        if len(parts) == 1:
            return self._add("Unsqueeze", parts[0], axes, name=name)
        wide = [self._add("Unsqueeze", part, axes) for part in parts]
        return self._add("Concat", *wide, axis=axis, name=name)

    def _turned(self, name: str, d: int) -> str:
        return self._add("Transpose", self._part(name, d), perm=[1, 0])

    def _part(self, name: str, d: int) -> str:
        """One direction of a weight or state."""
        ends = [self._ints([d]), self._ints([d + 1]), self._ints([0])]
        return self._squeeze(self._add("Slice", name, *ends), 0)

    def _squeeze(self, name: str, axis: int) -> str:
        return self._add("Squeeze", name, self._ints([axis]))

    def _cut(self, name: str, count: int, axis: int) -> list[str]:
        outputs = [self._fresh() for _ in range(count)]
        split = helper.make_node("Split", [name], outputs, axis=axis, num_outputs=count)
        self.nodes.append(split)
        return outputs

    def _gates(self, name: str, count: int) -> list[str]:
        """[B, count H] by gate; apart, so that each becomes part of the code that reads it."""
        ends = [self._ints([gate * self._hidden]) for gate in range(count + 1)]
        axis = self._ints([1])
        return [self._add("Slice", name, *ends[g : g + 2], axis) for g in range(count)]

    def _zeros(self) -> str:
        """[B, H] in the dtype of x."""
        size = self._add("Shape", self._x, start=1, end=2)
        shape = self._add("Concat", size, self._ints([self._hidden]), axis=0)
        return self._add("CastLike", self._add("ConstantOfShape", shape), self._x)

    def _like(self, array: np.ndarray, other: str) -> str:
        tensor = numpy_helper.from_array(array)
        return self._add("CastLike", self._add("Constant", value=tensor), other)

    def _ints(self, values: list[int]) -> str:
        return self._add("Constant", value=numpy_helper.from_array(np.array(values, np.int64)))

    def _add(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or self._fresh()
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def _fresh(self) -> str:
        return f"{self._prefix}.{next(self._numbers)}"

"""Random small ONNX graphs of the kind that the road is for, from a seed.

A graph is a chain of layers with structured weights (dense, zero in blocks, merged Kronecker, all
zero), each followed by a random epilogue, with residuals, shared weights, transposes and reshapes
thrown in; the batch is symbolic or fixed, and sizes are odd as often as not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Rng = np.random.Generator
Array = np.ndarray[Any, np.dtype[Any]]

ACTIVATIONS = ("Relu", "Gelu", "Sigmoid", "Tanh", "LeakyRelu", "silu", "gelu erf", "Clip")
BLOCKS = ((1, 4), (4, 4), (8, 4), (16, 16), (32, 1), (3, 5), (4, 1), (2, 8))


def random_weight(rng: Rng, out: int, inner: int) -> Array:
    """W [out, inner], float32: one of the structures, scaled to keep activations near one."""
    kind = rng.choice(["dense", "blocks", "blocks", "kronecker", "zero", "rows"])
    w = rng.standard_normal((out, inner))
    if kind == "blocks":
        bh, bw = BLOCKS[rng.integers(len(BLOCKS))]
        live = rng.random((-(-out // bh), -(-inner // bw))) < rng.choice([0.1, 0.3, 0.6])
        w *= np.kron(live, np.ones((bh, bw)))[:out, :inner]
    elif kind == "kronecker" and out % 4 == 0 and inner % 4 == 0:
        w = np.zeros((out, inner))
        live = rng.random((out // 4, inner // 4)) < 0.4
        for _ in range(int(rng.integers(1, 3))):
            a = rng.standard_normal(live.shape) * live
            w += np.kron(a, rng.standard_normal((4, 4)))
    elif kind == "zero":
        w *= rng.random() < 0.5
    elif kind == "rows":
        w[rng.random(out) < 0.5] = 0
        w[:, rng.random(inner) < 0.3] = 0
    return (w / np.sqrt(max((w != 0).sum() / out, 1))).astype(np.float32)


@dataclass
class GraphMaker:
    """Builds one graph; ``x`` is the current value and ``shape`` its sizes after the batch."""

    rng: Rng
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    longest_sum: int = 16
    count: int = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node of one output; returns its name."""
        name = self.fresh(operator.lower())
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: Array, stem: str = "c") -> str:
        """An initializer; returns its name."""
        name = self.fresh(stem)
        self.weights[name] = array
        return name

    def activate(self, x: str) -> str:
        kind = self.rng.choice(ACTIVATIONS)
        if kind == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if kind == "gelu erf":
            half = self.constant(np.float32(0.5))
            root = self.constant(np.float32(np.sqrt(2)))
            one = self.constant(np.float32(1))
            inner = self.add("Add", self.add("Erf", self.add("Div", x, root)), one)
            return self.add("Mul", self.add("Mul", x, inner), half)
        if kind == "Clip":
            bounds = [self.constant(np.float32(v)) for v in (-1, 6)]
            return self.add("Clip", x, *bounds)
        return self.add(str(kind), x)

    def linear(self, x: str, inner: int, out: int, rank: int) -> str:
        """A layer in one of its spellings."""
        self.longest_sum = max(self.longest_sum, inner)
        shared = [n for n, w in self.weights.items() if w.shape == (inner, out) and w.size > 8]
        if shared and self.rng.random() < 0.3:
            name = str(self.rng.choice(shared))
            return self.add("MatMul", x, name)
        w = random_weight(self.rng, out, inner)
        bias = self.rng.standard_normal(out).astype(np.float32)
        spelling = self.rng.choice(["MatMul", "Gemm", "transposed", "left"])
        if spelling == "Gemm" and rank == 2:
            flip = int(self.rng.integers(2))
            weight = self.constant(w if flip else np.ascontiguousarray(w.T), "w")
            scale = float(self.rng.choice([1.0, 0.5]))
            return self.add(
                "Gemm", x, weight, self.constant(bias), transB=flip, alpha=scale, beta=2.0
            )
        if spelling == "transposed":
            x = self.add("MatMul", x, self.add("Transpose", self.constant(w, "w"), perm=[1, 0]))
        else:
            x = self.add("MatMul", x, self.constant(np.ascontiguousarray(w.T), "w"))
        if self.rng.random() < 0.3:
            return x
        operands = [x, self.constant(bias)]
        return self.add("Add", *(operands if spelling != "left" else operands[::-1]))

    def normalise(self, x: str, width: int) -> str:
        kind = self.rng.choice(["LayerNormalization", "Softmax", "scale", "mean"])
        if kind == "LayerNormalization":
            scale, bias = (self.rng.standard_normal(width).astype(np.float32) for _ in range(2))
            return self.add(
                "LayerNormalization", x, self.constant(scale), self.constant(bias), axis=-1
            )
        if kind == "Softmax":
            return self.add("Softmax", x, axis=-1)
        if kind == "scale":
            return self.add("Mul", x, self.constant(np.full(width, 0.5, np.float32)))
        axes = self.constant(np.array([-1]), "axes")
        return self.add("Sub", x, self.add("ReduceMean", x, axes, keepdims=1))

    def convolve(self, x: str, channels: int, side: int) -> tuple[str, int, int]:
        """A convolution in [batch, channels, side, side]; returns the new sizes too."""
        out, kernel = int(self.rng.choice([3, 4, 8, 16])), int(self.rng.choice([1, 2, 3]))
        stride, pad = int(self.rng.choice([1, 1, 2])), int(self.rng.integers(0, kernel))
        w = random_weight(self.rng, out, channels * kernel**2)
        self.longest_sum = max(self.longest_sum, w.shape[1])
        weight = self.constant(w.reshape(out, channels, kernel, kernel), "w")
        inputs = [x, weight]
        if self.rng.random() < 0.7:
            inputs.append(self.constant(self.rng.standard_normal(out).astype(np.float32)))
        y = self.add("Conv", *inputs, strides=[stride] * 2, pads=[pad] * 4)
        return y, out, (side + 2 * pad - kernel) // stride + 1


def random_model(seed: int) -> tuple[onnx.ModelProto, list[dict[str, Array]], int]:
    """A valid model, inputs to try it with, and the length of its longest sum."""
    rng = np.random.default_rng(seed)
    maker = GraphMaker(rng)
    convolutional = rng.random() < 0.25
    batch: int | str = "batch" if rng.random() < 0.6 else int(rng.choice([1, 2, 7, 16, 33]))
    sizes = _convolutions(maker) if convolutional else _layers(maker)
    shape, outputs = sizes
    opset = int(rng.choice([20, 21, 22]))
    graph = helper.make_graph(
        maker.nodes,
        f"seed {seed}",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.asarray(w), name) for name, w in maker.weights.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model)
    lengths = [batch] if isinstance(batch, int) else [1, 3, 16, 37]
    feeds = [{"x": rng.standard_normal((n, *shape)).astype(np.float32)} for n in lengths]
    return model, feeds, maker.longest_sum


def _layers(maker: GraphMaker) -> tuple[list[int], list[str]]:
    """Linear layers on [batch, width] or [batch, positions, width]."""
    rng = maker.rng
    widths = [4, 7, 8, 15, 16, 17, 24, 32, 48, 64, 65]
    width = int(rng.choice(widths))
    positions = [] if rng.random() < 0.6 else [int(rng.choice([1, 3, 8]))]
    shape, rank = [*positions, width], 2 + len(positions)
    x, outputs, earlier = "x", [], [("x", width)]
    for _ in range(int(rng.integers(1, 6))):
        out = int(rng.choice([width, *widths]))
        x = maker.linear(x, width, out, rank)
        width = out
        if rng.random() < 0.7:
            x = maker.activate(x)
        same = [name for name, size in earlier if size == width]
        if same and rng.random() < 0.6:
            x = maker.add("Add", x, str(rng.choice(same)))
        if rng.random() < 0.3:
            x = maker.normalise(x, width)
        if rng.random() < 0.15 and rank == 3:
            x = maker.add("Transpose", maker.add("Transpose", x, perm=[0, 2, 1]), perm=[0, 2, 1])
        if rng.random() < 0.15:
            flat = maker.add("Reshape", x, maker.constant(np.array([-1, width]), "s"))
            back = np.array([-1, *positions, width])
            x = maker.add("Reshape", flat, maker.constant(back, "s"))
        if rng.random() < 0.2:
            order = rng.permutation(width)
            x = maker.add("Gather", x, maker.constant(order, "i"), axis=rank - 1)
        earlier.append((x, width))
        if rng.random() < 0.15:
            outputs.append(x)
    return shape, list(dict.fromkeys([*outputs, x]))


def _convolutions(maker: GraphMaker) -> tuple[list[int], list[str]]:
    """Convolutions on [batch, channels, side, side], then a layer."""
    rng = maker.rng
    channels, side = int(rng.choice([1, 3, 4, 8])), int(rng.choice([5, 8, 9]))
    shape, x = [channels, side, side], "x"
    for _ in range(int(rng.integers(1, 4))):
        if side < 3:
            break
        before, old = x, (channels, side)
        x, channels, side = maker.convolve(x, channels, side)
        if (channels, side) == old and rng.random() < 0.5:
            x = maker.add("Add", before, x)
        x = maker.activate(x) if rng.random() < 0.7 else x
        if side >= 2 and rng.random() < 0.3:
            pool = str(rng.choice(["MaxPool", "AveragePool"]))
            x = maker.add(pool, x, kernel_shape=[2, 2], strides=[2, 2])
            side //= 2
    x = maker.add("Flatten", x, axis=1)
    x = maker.linear(x, channels * side * side, int(rng.choice([5, 16])), 2)
    return shape, [x]

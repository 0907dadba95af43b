"""Convolutions: kernels that read the image itself, depthwise ones, channels kept last."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from bscompile import importer
from bscompile.passes import pipeline
from bscompile.targets.planner import plan
from tests.targets.lowering_helpers import Compiled, assert_equal_to_onnxruntime, context

CONTEXT = context(2)


def conv(name, x, y, shape, weights, seed=0, live=None, **attributes):
    """A Conv node with a bias; ``weights`` receives its initializers."""
    rng = np.random.default_rng(seed)
    kernel = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    if live is not None:
        kernel = (kernel * live).astype(np.float32)
    weights[f"{name}.w"] = kernel
    weights[f"{name}.b"] = rng.standard_normal(shape[0]).astype(np.float32)
    return helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [y], name=name, **attributes)


def model(nodes, weights, x, out_rank=4):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * out_rank)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def compiled(proto):
    graph = importer.load_model(proto)
    passes = pipeline.pipeline(lambda op, m, dtype, step: plan(op, m, dtype, CONTEXT))
    pipeline.run(graph, passes)
    return Compiled(graph, CONTEXT)


def check(proto, *shapes, k):
    made = compiled(proto)
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for shape in shapes]
    assert_equal_to_onnxruntime(proto, *feeds, k=k, compiled=made)
    return made


def transposes(made):
    from tvm import relax

    module = relax.transform.DeadCodeElimination()(made.lowered.module)
    return str(module).count("R.permute_dims(")


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "attributes"),
    [
        (3, 8, (9, 11), (3, 3), {"pads": [1, 1, 1, 1]}),
        (3, 33, (17, 13), (7, 7), {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
        (16, 64, (7, 7), (3, 3), {"pads": [1, 1, 1, 1]}),
        (17, 5, (8, 5), (1, 1), {"strides": [2, 2]}),
        (8, 20, (6, 6), (2, 3), {"pads": [0, 1, 1, 0], "strides": [1, 2]}),
        (5, 16, (12, 12), (3, 3), {"dilations": [2, 3], "pads": [2, 2, 2, 2]}),
        (1, 1, (5, 5), (5, 5), {}),
        (4, 12, (1, 40), (1, 9), {"strides": [1, 3]}),
    ],
)
def test_dense_kernels_read_the_image(channels, outputs, size, kernel, attributes):
    weights = {}
    shape = (outputs, channels, *kernel)
    node = conv("c", "x", "y", shape, weights, kernel_shape=kernel, **attributes)
    proto = model([node], weights, ["batch", channels, *size])
    made = check(proto, (1, channels, *size), (3, channels, *size), k=channels * np.prod(kernel))
    assert "im2col" not in str(made.lowered.module)


def test_an_image_of_unknown_size_goes_through_windows():
    weights = {}
    node = conv("c", "x", "y", (8, 3, 3, 3), weights, pads=[1, 1, 1, 1])
    proto = model([node], weights, ["batch", 3, "high", "wide"])
    made = check(proto, (2, 3, 5, 9), (1, 3, 16, 4), k=27)
    assert "im2col" in str(made.lowered.module)


def sparse(out, inner, kernel, block, density, seed=3):
    """Which of a kernel's weights live: blocks of its matrix [out, inner · kh · kw]."""
    columns = inner * int(np.prod(kernel))
    grid = (-(-out // block[0]), -(-columns // block[1]))
    mask = np.kron(np.random.default_rng(seed).random(grid) < density, np.ones(block))
    return mask[:out, :columns].reshape(out, inner, *kernel)


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "block", "attributes"),
    [
        (16, 64, (12, 12), (3, 3), (16, 16), {"pads": [1, 1, 1, 1]}),
        (32, 40, (9, 7), (3, 3), (8, 4), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        (8, 48, (6, 14), (5, 3), (16, 9), {"pads": [2, 0, 2, 0], "dilations": [1, 2]}),
        (24, 33, (5, 5), (1, 1), (16, 8), {"strides": [2, 2]}),
        (16, 32, (4, 4), (3, 3), (32, 1), {}),
    ],
)
def test_sparse_kernels_read_the_image(channels, outputs, size, kernel, block, attributes):
    weights = {}
    live = sparse(outputs, channels, kernel, block, 0.15)
    live[: block[0]] = 0  # an empty block row
    shape = (outputs, channels, *kernel)
    node = conv("c", "x", "y", shape, weights, live=live, **attributes)
    proto = model([node], weights, ["batch", channels, *size])
    made = check(proto, (1, channels, *size), (3, channels, *size), k=channels * np.prod(kernel))
    text = str(made.lowered.module)
    assert "block_sparse_matmul" in text
    assert "im2col" not in text


@pytest.mark.parametrize("first", ["plain", "after another"])
def test_without_a_size_sparse_kernels_go_through_windows(first):
    weights = {}
    nodes = []
    if first == "after another":
        nodes.append(conv("before", "x", "h", (16, 16, 1, 1), weights))
    shape = (64, 16, 3, 3)
    live = sparse(64, 16, (3, 3), (16, 16), 0.3)
    x = "h" if nodes else "x"
    nodes.append(conv("c", x, "y", shape, weights, live=live, pads=[1, 1, 1, 1]))
    made = check(model(nodes, weights, [2, 16, "high", "wide"]), (2, 16, 12, 9), k=144)
    assert "block_sparse_matmul" in str(made.lowered.module)
    assert "im2col" in str(made.lowered.module)


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "attributes"),
    [
        (32, (9, 9), (3, 3), {"pads": [1, 1, 1, 1]}),
        (40, (7, 12), (5, 5), {"pads": [2, 2, 2, 2], "strides": [2, 2]}),
        (7, (6, 5), (3, 1), {"dilations": [2, 1]}),
        (2, (4, 4), (2, 2), {}),
        (96, (3, 3), (3, 3), {}),
    ],
)
def test_depthwise(channels, size, kernel, attributes):
    weights = {}
    shape = (channels, 1, *kernel)
    node = conv("c", "x", "y", shape, weights, group=channels, **attributes)
    proto = model([node], weights, ["batch", channels, *size])
    made = check(proto, (1, channels, *size), (2, channels, *size), k=np.prod(kernel))
    assert "NHWC" in str(made.lowered.module)


def functions(made):
    """Names of the functions that the model's code consists of."""
    from bscompile.targets.cpu.pipeline import passes

    module = made.lowered.module
    for step in passes(CONTEXT.hardware):
        if step.info.name == "bscompile.Schedule":
            break
        module = step(module)
    return sorted(gv.name_hint for gv in module.get_global_vars() if gv.name_hint != "main")


AFTER = {
    "hard swish": [helper.make_node("HardSwish", ["h"], ["y"])],
    "clip": [helper.make_node("Clip", ["h", "low", "high"], ["y"])],
    "silu": [helper.make_node("Sigmoid", ["h"], ["s"]), helper.make_node("Mul", ["s", "h"], ["y"])],
    "leaky": [helper.make_node("LeakyRelu", ["h"], ["y"], alpha=0.2)],
    "gelu": [helper.make_node("Gelu", ["h"], ["y"])],
    "two readers": [
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Concat", ["h", "r"], ["y"], axis=1),
    ],
}


@pytest.mark.parametrize("after", AFTER)
def test_what_follows_a_depthwise_convolution_is_part_of_it(after):
    weights = {"low": np.float32(-0.5), "high": np.float32(0.75)}
    node = conv("c", "x", "h", (24, 1, 3, 3), weights, group=24, pads=[1, 1, 1, 1])
    made = check(model([node, *AFTER[after]], weights, [1, 24, 5, 7]), (1, 24, 5, 7), k=9)
    names = functions(made)
    assert any(name.startswith("depthwise") for name in names)
    assert any("relu" in name for name in names) == (after == "two readers")
    assert after == "two readers" or all(n.startswith(("depth", "transp")) for n in names)


def test_grouped_convolutions_stay_right():
    weights = {}
    node = conv("c", "x", "y", (12, 4, 3, 3), weights, group=2, pads=[1, 1, 1, 1])
    check(model([node], weights, [2, 8, 6, 6]), (2, 8, 6, 6), k=36)


BETWEEN = {
    "relu": [helper.make_node("Relu", ["h"], ["i"])],
    "residual": [
        helper.make_node("Sigmoid", ["h"], ["s"]),
        helper.make_node("Mul", ["h", "s"], ["i"]),
    ],
    "max pool": [helper.make_node("MaxPool", ["h"], ["i"], kernel_shape=[2, 2], strides=[2, 2])],
    "average pool": [
        helper.make_node("AveragePool", ["h"], ["i"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    ],
    "padded pool": [
        helper.make_node(
            "AveragePool", ["h"], ["i"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
        )
    ],
    "global pool": [helper.make_node("GlobalAveragePool", ["h"], ["i"])],
    "scale": [helper.make_node("Mul", ["h", "scale"], ["i"])],
    "image": [helper.make_node("Add", ["h", "image"], ["i"])],
    "normalise": [
        helper.make_node("BatchNormalization", ["h", "one", "two", "three", "four"], ["i"])
    ],
}


@pytest.mark.parametrize("between", BETWEEN)
def test_between_convolutions_nothing_is_transposed(between):
    """Nor before the first one, which has few channels; only what leaves the model is."""
    rng = np.random.default_rng(2)
    weights = {
        "scale": rng.standard_normal((16, 1, 1)).astype(np.float32),
        "image": rng.standard_normal((1, 16, 8, 8)).astype(np.float32),
        **{n: rng.random(16).astype(np.float32) + 0.5 for n in ("one", "two", "three", "four")},
    }
    nodes = [
        conv("a", "x", "h", (16, 3, 3, 3), weights, pads=[1, 1, 1, 1]),
        *BETWEEN[between],
        conv("b", "i", "y", (8, 16, 1, 1), weights, seed=1),
    ]
    made = check(model(nodes, weights, [2, 3, 8, 8]), (2, 3, 8, 8), k=144)
    assert transposes(made) == (2 if between == "image" else 1)


def test_branches_meet_with_channels_last():
    weights = {}
    nodes = [
        conv("a", "x", "h", (16, 3, 3, 3), weights, pads=[1, 1, 1, 1]),
        conv("b", "h", "i", (16, 16, 3, 3), weights, seed=1, pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["h", "i"], ["j"]),
        helper.make_node("Concat", ["h", "j"], ["k"], axis=1),
        conv("c", "k", "y", (4, 32, 1, 1), weights, seed=2),
    ]
    made = check(model(nodes, weights, ["n", 3, 8, 8]), (1, 3, 8, 8), (3, 3, 8, 8), k=144)
    assert transposes(made) == 1


@pytest.mark.parametrize(
    "between",
    [
        ["Transpose"],  # to channels last, for the layers of a block
        ["Transpose", "Relu", "Transpose"],
    ],
)
def test_layouts_that_the_model_changes_itself(between):
    weights = {}
    nodes = [conv("one", "x", "t0", (16, 3, 3, 3), weights)]
    perms = iter([[0, 2, 3, 1], [0, 3, 1, 2]])
    for i, kind in enumerate(between):
        attributes = {"perm": next(perms)} if kind == "Transpose" else {}
        nodes.append(helper.make_node(kind, [f"t{i}"], [f"t{i + 1}"], **attributes))
    if len(between) == 1:
        nodes.append(helper.make_node("Relu", ["t1"], ["y"]))
    else:
        nodes += [
            helper.make_node("Add", ["t3", "t0"], ["t4"]),
            conv("two", "t4", "t5", (5, 16, 1, 1), weights, seed=1),
            helper.make_node("Transpose", ["t5"], ["y"], perm=[0, 2, 3, 1]),
        ]
    made = check(model(nodes, weights, ["batch", 3, 9, 7]), (1, 3, 9, 7), (3, 3, 9, 7), k=32)
    assert transposes(made) == 0


def test_transposed_convolutions_keep_their_channels_last():
    weights = {}
    nodes = [conv("one", "x", "low", (20, 3, 3, 3), weights, strides=[2, 2], pads=[1, 1, 1, 1])]
    for name, side, attributes in (("up", 2, {}), ("wide", 4, {"pads": [1, 1, 1, 1]})):
        node = conv(name, "low", name, (20, 18, side, side), weights, **attributes, strides=[2, 2])
        node.op_type = "ConvTranspose"
        weights[f"{name}.b"] = weights[f"{name}.b"][:18].copy()
        nodes.append(node)
    nodes += [
        helper.make_node("Add", ["up", "wide"], ["sum"]),
        conv("two", "sum", "t", (6, 18, 3, 3), weights, seed=1, pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["t", "axes"], ["y"]),
    ]
    weights["axes"] = np.array([2, 3], np.int64)
    made = check(model(nodes, weights, ["batch", 3, 10, 14]), (2, 3, 10, 14), k=20 * 16)
    assert transposes(made) == 3  # two that interleave rows, and the output's
    assert "conv2d_transpose" not in str(made.lowered.module)


def test_whoever_needs_channels_first_gets_them():
    weights = {"shape": np.array([2, -1], np.int64)}
    nodes = [
        conv("a", "x", "h", (16, 3, 3, 3), weights),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["y"]),
    ]
    check(model(nodes, weights, [2, 3, 8, 8], out_rank=2), (2, 3, 8, 8), k=27)


@pytest.mark.parametrize("channels", [16, 24, 4, 6, 18])
def test_pools_run_in_vectors_where_channels_allow(channels, monkeypatch):
    from bscompile.targets.cpu import schedules
    from bscompile.targets.cpu.schedules import reductions

    taken = []

    def spy(func, hardware):
        result = reductions.apply(func, hardware)
        taken.append(result is not None)
        return result

    rules = [spy if rule is reductions.apply else rule for rule in schedules.RULES]
    monkeypatch.setattr(schedules, "RULES", tuple(rules))
    weights = {}
    nodes = [
        conv("a", "x", "h", (channels, 3, 3, 3), weights, pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["h"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    check(model(nodes, weights, [2, 3, 9, 9]), (2, 3, 9, 9), k=27)
    assert taken == [channels != 18]

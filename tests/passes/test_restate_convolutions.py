"""Convolutions in other words compute the same."""

import numpy as np
import pytest

from bscompile.importer import load_model
from bscompile.passes.restate_convolutions import RestateConvolutions
from tests.passes.helpers import check_equal, dense, model_from, op_types


def restated(text, weights, feeds, applied=1):
    proto = model_from(text, weights)
    graph = load_model(proto)
    step = RestateConvolutions()
    step(graph)
    assert len(step.applied) == applied
    check_equal(proto, graph, feeds)
    return op_types(graph), step


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((6, 4, 3), "pads: ints = [1, 1]"),
        ((6, 4, 5), "strides: ints = [2], pads: ints = [0, 2], dilations: ints = [2]"),
        ((8, 1, 3), "group: int = 4"),
        ((6, 4, 3), 'auto_pad: string = "SAME_UPPER"'),
    ],
)
@pytest.mark.parametrize("batch", ["2", "n"])
def test_one_axis_becomes_two(shape, attributes, batch):
    text = f"""g (float[{batch}, 4, 17] x, float[{shape[0]}] b) => (float[a, c, d] y) {{
        y = Conv<{attributes}>(x, w, b)
    }}"""
    feeds = {"x": dense(2, 4, 17), "b": dense(shape[0])}
    types, _ = restated(text, {"w": dense(*shape)}, feeds)
    assert types == ["Unsqueeze", "Conv", "Squeeze"]


@pytest.mark.parametrize("bias", ["constant", "computed", "none"])
def test_a_stride_as_long_as_the_kernel_is_a_convolution_of_one_tap(bias):
    inputs = "float[n, 5, 4, 3] x" + (", float[6] b" if bias == "computed" else "")
    operand = "" if bias == "none" else ", b"
    text = f"""g ({inputs}) => (float[a, c, d, e] y) {{
        y = ConvTranspose<strides: ints = [2, 3]>(x, w{operand})
    }}"""
    weights = {"w": dense(5, 6, 2, 3)} | ({"b": dense(6)} if bias == "constant" else {})
    feeds = {"x": dense(2, 5, 4, 3)} | ({"b": dense(6)} if bias == "computed" else {})
    types, _ = restated(text, weights, feeds)
    plain = ["Conv", "Transpose", "Reshape", "Transpose", "Reshape", "Transpose"]
    if bias == "computed":
        plain.insert(-1, "Add")
    assert types == plain


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((4, 4), "strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]"),
        (
            (3, 3),
            "strides: ints = [2, 2], pads: ints = [1, 1, 1, 1], output_padding: ints = [1, 1]",
        ),
        ((3, 2), "strides: ints = [1, 1]"),
        ((3, 3), "strides: ints = [2, 1], dilations: ints = [2, 1]"),
        ((2, 3), "strides: ints = [3, 2], dilations: ints = [2, 3]"),
        ((5, 3), "strides: ints = [3, 2], pads: ints = [0, 1, 2, 0]"),
        ((5, 7), "strides: ints = [2, 3], pads: ints = [4, 5, 3, 6]"),
        ((1, 2), "strides: ints = [3, 4], output_padding: ints = [2, 3]"),
        ((1, 1), "strides: ints = [2, 2]"),
    ],
)
@pytest.mark.parametrize("batch", ["2", "n"])
def test_phases_of_a_stride_are_channels_of_one_convolution(kernel, attributes, batch):
    text = f"""g (float[{batch}, 5, 4, 6] x) => (float[a, c, d, e] y) {{
        y = ConvTranspose<{attributes}>(x, w, b)
    }}"""
    weights = {"w": dense(5, 7, *kernel), "b": dense(7)}
    types, _ = restated(text, weights, {"x": dense(2, 5, 4, 6)})
    assert types[0] == "Conv"
    assert not {"ConvTranspose", "Pad"} & set(types)


@pytest.mark.parametrize(("stride", "taps", "pad"), [(2, 4, 1), (8, 16, 4), (5, 10, 2)])
def test_a_transposed_convolution_of_one_axis(stride, taps, pad):
    text = f"""g (float[n, 3, 8] x) => (float[a, c, d] y) {{
        y = ConvTranspose<strides: ints = [{stride}], pads: ints = [{pad}, {pad}]>(x, w)
    }}"""
    types, _ = restated(text, {"w": dense(3, 4, taps)}, {"x": dense(2, 3, 8)})
    # The phases of one row lie side by side: nothing is interleaved.
    assert types == ["Unsqueeze", "Conv", "Transpose", "Reshape", "Slice", "Transpose", "Squeeze"]


@pytest.mark.parametrize(
    "attributes",
    ["group: int = 2", "strides: ints = [1, 1], pads: ints = [3, 3, 3, 3]"],
)
def test_what_is_left_alone_and_why(attributes):
    text = f"""g (float[2, 4, 9, 9] x) => (float[a, c, d, e] y) {{
        y = ConvTranspose<{attributes}>(x, w)
    }}"""
    types, step = restated(text, {"w": dense(4, 3, 2, 2)}, {"x": dense(2, 4, 9, 9)}, applied=0)
    assert types == ["ConvTranspose"]
    assert len(step.refused) == 1


def test_computed_kernels_stay():
    text = """g (float[2, 4, 9] x, float[3, 4, 3] w) => (float[a, c, d] y) { y = Conv(x, w) }"""
    restated(text, {}, {"x": dense(2, 4, 9), "w": dense(3, 4, 3)}, applied=0)


def test_zero_blocks_of_a_restated_layer_count():
    from bscompile.passes.recognise_linear import RecogniseLinear

    live = np.kron(np.eye(4), np.ones((16, 16)))
    text = "g (float[2, 64, 9] x) => (float[a, c, d] y) { y = Conv(x, w) }"
    graph = load_model(model_from(text, {"w": (dense(64, 64) * live)[:, :, None].astype("f")}))
    RestateConvolutions()(graph)
    RecogniseLinear()(graph)
    assert "BlockSparseConv" in op_types(graph)

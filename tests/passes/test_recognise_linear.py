"""Linear layers become dialect ops with equal numbers; each refusal says why."""

import json

import numpy as np
import pytest

from bscompile.dialect import FOUND_KEY, is_dialect, read_node
from bscompile.importer import load_model
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.recognise_linear import RecogniseLinear
from tests.passes.helpers import blocky, dense, model_from, op_types, rewritten


def rewrite(text, weights, feeds, k=64, **options):
    """The rewritten model and its pass; numbers are checked on the way."""
    step = RecogniseLinear()
    model = rewritten(model_from(text, weights, **options), FoldConstants(), step, feeds=feeds, k=k)
    return model, step


def refusal(text, weights, **options):
    step = RecogniseLinear()
    model = load_model(model_from(text, weights, **options))
    before = op_types(model)
    step(model)
    assert not step.applied
    assert op_types(model) == before
    (note,) = step.refused
    return note.text


MATMUL = "g (float[N, 24] x) => (float[N, 20] y) { y = MatMul(x, w) }"


@pytest.mark.parametrize("rows", [1, 5])
def test_matmul_by_a_blocky_weight(rows):
    w = blocky((24, 20), (4, 5))
    model, step = rewrite(MATMUL, {"w": w}, {"x": dense(rows, 24)})
    assert op_types(model) == ["BlockSparseMatMul"]
    assert len(step.applied) == 1
    op = read_node(model.graph[0])
    assert op.weight.block == (5, 4)
    np.testing.assert_array_equal(op.weight.to_dense(), w.T)


def test_matmul_by_a_dense_weight_and_batched_x():
    text = "g (float[2, N, 24] x) => (float[2, N, 20] y) { y = MatMul(x, w) }"
    model, _ = rewrite(text, {"w": dense(24, 20)}, {"x": dense(2, 3, 24)})
    assert op_types(model) == ["DenseMatMul"]
    found = json.loads(model.graph[0].metadata_props[FOUND_KEY])
    assert (found["kind"], found["block"], found["density"]) == ("dense", [1, 1], 1.0)


def test_constant_on_the_left_with_zero_blocks_turns_x():
    text = "g (float[2, 24, N] x) => (float[2, 20, N] y) { y = MatMul(w, x) }"
    model, _ = rewrite(text, {"w": blocky((20, 24))}, {"x": dense(2, 24, 7)})
    assert op_types(model) == ["Transpose", "BlockSparseMatMul", "Transpose"]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (1.5, 0.0)])
@pytest.mark.parametrize("addend", ["none", "[out]", "[1,out]", "[1]", "[]", "[m,1]", "[m,out]"])
def test_gemm_in_all_its_forms(trans_a, trans_b, alpha, beta, addend):
    m, n, k = 6, 20, 24
    weights = {"w": blocky((n, k) if trans_b else (k, n), (4, 4))}
    shapes = {"[out]": (n,), "[1,out]": (1, n), "[1]": (1,), "[]": (), "[m,1]": (m, 1),
              "[m,out]": (m, n)}  # fmt: skip
    if addend != "none":
        weights["c"] = dense(*shapes[addend])
    x_shape = (k, m) if trans_a else (m, k)
    text = (
        f"g (float[{x_shape[0]}, {x_shape[1]}] x) => (float[{m}, {n}] y) {{ "
        f"y = Gemm<transA: int = {trans_a}, transB: int = {trans_b}, "
        f"alpha: float = {alpha}, beta: float = {beta}>(x, w{', c' if addend != 'none' else ''}) }}"
    )
    model, step = rewrite(text, weights, {"x": dense(*x_shape)})
    assert len(step.applied) == 1
    kinds = op_types(model)
    assert kinds[:trans_a] == ["Transpose"] * trans_a
    assert kinds[trans_a] == "BlockSparseMatMul"
    layer = next(node for node in model.graph if is_dialect(node))
    bias = addend in ("[out]", "[1,out]", "[1]", "[]") and beta != 0
    assert read_node(layer).epilogue == (("bias",) if bias else ())
    if addend in ("[m,1]", "[m,out]") and beta != 0:
        assert kinds[-1] == "Add"


def test_gemm_with_a_computed_addend_of_its_shape_takes_it_as_residual():
    text = "g (float[N, 8] x, float[N, 12] c) => (float[N, 12] y) { y = Gemm(x, w, c) }"
    feeds = {"x": dense(3, 8), "c": dense(3, 12)}
    model, _ = rewrite(text, {"w": blocky((8, 12))}, feeds)
    assert [read_node(n).epilogue for n in model.graph] == [("residual",)]


def test_gemm_with_a_computed_bias():
    text = "g (float[N, 8] x, float[12] c) => (float[N, 12] y) { y = Gemm(x, w, c) }"
    model, _ = rewrite(text, {"w": blocky((8, 12))}, {"x": dense(3, 8), "c": dense(12)})
    assert [read_node(n).epilogue for n in model.graph] == [("bias",)]


def test_fused_qkv_is_one_layer():
    text = """g (float[2, N, 16] x) => (float[2, N, 16] q, float[2, N, 16] k, float[2, N, 16] v) {
        y = MatMul(x, w)
        q, k, v = Split<axis: int = -1, num_outputs: int = 3>(y)
    }"""
    model, _ = rewrite(text, {"w": blocky((16, 48))}, {"x": dense(2, 5, 16)})
    assert op_types(model) == ["BlockSparseMatMul", "Split"]


CONV = "g (float[N, 8, 11, 9] x) => (float[N, 12, P, Q] y) {{ y = Conv<{0}>(x, w, b) }}"


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((1, 1), "strides: ints = [1, 1]"),
        ((1, 1), "strides: ints = [2, 2]"),
        ((3, 3), "pads: ints = [1, 1, 1, 1]"),
        ((3, 3), "pads: ints = [0, 1, 2, 3], strides: ints = [2, 1]"),
        ((3, 2), "dilations: ints = [2, 3]"),
        ((3, 3), 'auto_pad: string = "SAME_UPPER", strides: ints = [2, 2]'),
        ((4, 4), 'auto_pad: string = "SAME_LOWER"'),
        ((4, 3), 'auto_pad: string = "SAME_UPPER", strides: ints = [3, 1]'),
        ((3, 3), 'auto_pad: string = "VALID", strides: ints = [3, 2]'),
    ],
)
@pytest.mark.parametrize("zero_blocks", [True, False])
def test_conv_with_every_padding(kernel, attributes, zero_blocks):
    shape = (12, 8, *kernel)
    flat = (12, 8 * kernel[0] * kernel[1])
    w = blocky(flat, (4, 4)) if zero_blocks else dense(*flat)
    weights = {"w": w.reshape(shape), "b": dense(12)}
    model, _ = rewrite(CONV.format(attributes), weights, {"x": dense(2, 8, 11, 9)}, k=flat[1])
    assert op_types(model) == ["BlockSparseConv" if zero_blocks else "DenseConv"]
    assert read_node(model.graph[0]).epilogue == ("bias",)


def test_dead_input_channels_of_a_conv_are_blocks_as_wide_as_the_kernel():
    live = np.repeat(np.repeat(np.random.default_rng(0).random((3, 4)) < 0.5, 4, 0), 2, 1)
    w = dense(12, 8, 3, 3) * live[:, :, None, None]
    weights = {"w": w.astype(np.float32), "b": dense(12)}
    text = CONV.format("strides: ints = [1, 1]")
    model, _ = rewrite(text, weights, {"x": dense(1, 8, 11, 9)}, k=72)
    assert read_node(model.graph[0]).weight.block == (4, 18)


def test_a_quantized_weight_with_zero_blocks_is_seen_through_dequantize():
    w = blocky((48, 40), (8, 5)) * 40
    weights = {
        "q": np.clip(np.rint(w), -127, 127).astype(np.int8),
        "scale": np.full(40, 0.02, np.float32),
        "zero": np.zeros(40, np.int8),
    }
    text = """g (float[N, 48] x) => (float[N, 40] y) {
        w = DequantizeLinear<axis: int = 1>(q, scale, zero)
        y = MatMul(x, w)
    }"""
    model, _ = rewrite(text, weights, {"x": dense(3, 48)})
    assert op_types(model) == ["BlockSparseMatMul"]
    assert read_node(model.graph[0]).weight.block == (5, 8)


def test_a_weight_shared_by_two_layers_serves_both():
    text = """g (float[N, 16] x) => (float[N, 16] y) {
        h = MatMul(x, w)
        y = MatMul(h, w)
    }"""
    model, step = rewrite(text, {"w": blocky((16, 16))}, {"x": dense(3, 16)})
    assert op_types(model) == ["BlockSparseMatMul"] * 2
    assert len(step.applied) == 2


def test_a_weight_used_plain_here_and_transposed_there():
    text = """g (float[N, 16] x) => (float[N, 16] y) {
        h = MatMul(x, w)
        wt = Transpose<perm: ints = [1, 0]>(w)
        y = MatMul(h, wt)
    }"""
    w = blocky((16, 16), (8, 2))
    model, _ = rewrite(text, {"w": w}, {"x": dense(3, 16)})
    blocks = [read_node(node).weight.block for node in model.graph]
    assert blocks == [(2, 8), (8, 2)]


def test_tied_embedding_and_head():
    text = """g (int64[N] ids) => (float[N, 20] y) {
        h = Gather(w, ids)
        y = Gemm<transB: int = 1>(h, w)
    }"""
    model, _ = rewrite(text, {"w": blocky((20, 16))}, {"ids": np.array([3, 19, 0])})
    assert op_types(model) == ["Gather", "BlockSparseMatMul"]


def test_a_weight_that_is_also_an_output_stays_one():
    text = """g (float[N, 8] x) => (float[N, 8] y, float[8, 8] w) { y = MatMul(x, w) }"""
    model, _ = rewrite(text, {"w": blocky((8, 8))}, {"x": dense(2, 8)})
    assert op_types(model) == ["BlockSparseMatMul"]
    assert [value.name for value in model.graph.outputs] == ["y", "w"]


@pytest.mark.parametrize("ir_version", [3, 9])
def test_a_weight_listed_among_the_inputs_is_compiled_in(ir_version):
    text = "g (float[N, 8] x, float[8, 12] w) => (float[N, 12] y) { y = MatMul(x, w) }"
    weights = {"w": blocky((8, 12))}
    model, _ = rewrite(text, weights, {"x": dense(2, 8)}, ir_version=ir_version)
    assert op_types(model) == ["BlockSparseMatMul"]
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_layers_whose_result_is_the_output_keep_its_name():
    model, _ = rewrite(MATMUL, {"w": dense(24, 20)}, {"x": dense(2, 24)})
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_attention_scores_are_no_layer():
    text = "g (float[4, 8] x, float[8, 4] z) => (float[4, 4] y) { y = MatMul(x, z) }"
    step = RecogniseLinear()
    step(load_model(model_from(text)))
    assert not step.applied
    assert not step.refused


@pytest.mark.parametrize(
    ("text", "weights", "reason"),
    [
        (
            "g (float[2, 4, 8] x) => (float[2, 4, 6] y) { y = MatMul(x, w) }",
            {"w": dense(2, 8, 6)},
            "3 dimensions",
        ),
        ("g (float[8] x) => (float[6] y) { y = MatMul(x, w) }", {"w": dense(8, 6)}, "vector"),
        (
            "g (double[4, 8] x) => (double[4, 6] y) { y = MatMul(x, w) }",
            {"w": dense(8, 6).astype(np.float64)},
            "only float32",
        ),
        (
            "g (float[8, N] x) => (float[6, N] y) { y = MatMul(w, x) }",
            {"w": dense(6, 8)},
            "transposing x would not pay",
        ),
        (
            "g (float[8, N] x) => (float[6, N] y) { y = Gemm(w, x) }",
            {"w": dense(6, 8)},
            "constant on the left",
        ),
        (
            "g (float[N, 4, 9] x) => (float[N, 6, 7] y) { y = Conv(x, w) }",
            {"w": dense(6, 4, 3)},
            "1-D convolution",
        ),
        (
            "g (float[N, 4, 9, 9] x) => (float[N, 4, 7, 7] y) { y = Conv<group: int = 4>(x, w) }",
            {"w": dense(4, 1, 3, 3)},
            "depthwise",
        ),
        (
            """g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) {
                y = Conv<auto_pad: string = "SAME_UPPER", strides: ints = [2, 2]>(x, w)
            }""",
            {"w": dense(6, 4, 3, 3)},
            "needs a static image size",
        ),
    ],
)  # fmt: skip
def test_refusals_say_why(text, weights, reason):
    assert reason in refusal(text, weights)


def test_a_layer_in_the_body_of_if_is_refused():
    text = """g (float[2, 8] x, bool c) => (float[2, 8] y) {
        y = If(c) <
            then_branch = a () => (float[2, 8] p) { p = MatMul(x, w) },
            else_branch = b () => (float[2, 8] q) { q = Identity(x) }
        >
    }"""
    assert "inside the body" in refusal(text, {"w": blocky((8, 8))})

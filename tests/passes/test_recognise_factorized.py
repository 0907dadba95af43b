import json

import numpy as np
import pytest

from bscompile.dialect import FOUND_KEY, is_dialect, read_node
from bscompile.importer import load_model
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.recognise_factorized import RecogniseFactorized
from tests.passes.factorized import SPELLINGS, Factorized, export
from tests.passes.helpers import check_equal, dense, model_from, op_types
from tests.tolerance import assert_close

IN_GRAPH = [s for s in SPELLINGS if s not in ("build_w", "kron")]


def recognise(proto, feeds, k=64):
    model = load_model(proto)
    FoldConstants()(model)
    step = RecogniseFactorized()
    step(model)
    check_equal(proto, model, feeds, k)
    return model, step


def layers(model):
    return [read_node(node) for node in model.graph if is_dialect(node)]


def only_shapes_left(model):
    """What computed shapes is dead code now; nothing else of the spelling may be left."""
    gone = {"MatMul", "Einsum", "Transpose", "ReduceSum"}
    return not gone & set(op_types(model))


@pytest.mark.parametrize("spelling", IN_GRAPH)
@pytest.mark.parametrize(
    ("dynamo", "shape", "dynamic"),
    [
        (True, (4, 64), (0,)),
        (True, (1, 64), ()),
        (True, (2, 5, 64), (0, 1)),
        (True, (2, 5, 64), ()),
        (False, (4, 64), (0,)),
        (False, (4, 64), ()),
        (False, (2, 5, 64), (0, 1)),
    ],
)
def test_every_spelling_becomes_one_op(spelling, dynamo, shape, dynamic):
    module = Factorized(spelling)
    proto = export(module, shape, dynamic, dynamo)
    model, step = recognise(proto, {"x": dense(*shape)})
    (layer,) = layers(model)
    assert (layer.weight.rank, layer.weight.block) == (2, (8, 8))
    np.testing.assert_array_equal(layer.weight.support, module.S.detach().numpy() != 0)
    assert_close(layer.weight.to_dense(), module.weight().detach().numpy(), np.float32, 64)
    assert only_shapes_left(model)
    assert step.refused == []
    assert "2 Kronecker terms of 8x8 blocks" in step.applied[0].text
    (node,) = [n for n in model.graph if is_dialect(n)]
    assert json.loads(node.metadata_props[FOUND_KEY])["kind"] == "kronecker"


@pytest.mark.parametrize("spelling", ["loop", "stacked", "einsum"])
@pytest.mark.parametrize(
    ("block", "rank", "n", "m"), [((4, 4), 1, 64, 32), ((8, 4), 2, 64, 96), ((2, 6), 1, 60, 40)]
)
def test_rectangular_blocks_and_other_ranks(spelling, block, rank, n, m):
    module = Factorized(spelling, n=n, m=m, block=block, rank=rank)
    model, _ = recognise(export(module, (3, n), (0,)), {"x": dense(3, n)})
    (layer,) = layers(model)
    assert (layer.weight.rank, layer.weight.block) == (rank, block)


@pytest.mark.parametrize("spelling", ["loop", "stacked"])
def test_a_layer_over_the_exporters_folding_limit(spelling):
    module = Factorized(spelling, n=768, m=1536, block=(8, 8), rank=2, density=0.1)
    proto = export(module, (2, 768), (0,))
    assert "Mul" in {node.op_type for node in proto.graph.node}  # S and A apart
    model, _ = recognise(proto, {"x": dense(2, 768)}, k=768)
    (layer,) = layers(model)
    assert (layer.weight.rank, layer.weight.block) == (2, (8, 8))
    np.testing.assert_array_equal(layer.weight.support, module.S.detach().numpy() != 0)


def test_two_layers_in_a_row_and_a_residual_are_kept_apart():
    import torch

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = Factorized("loop", n=32, m=64, rank=1)
            self.down = Factorized("stacked", n=64, m=32, rank=1, seed=1)

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    model, _ = recognise(export(Block(), (4, 32), (0,)), {"x": dense(4, 32)})
    assert [layer.shape for layer in layers(model)] == [(64, 32), (32, 64)]
    assert [t for t in op_types(model) if t in ("Relu", "Add")] == ["Add", "Relu", "Add", "Add"]


TERMS = """
agraph (float[N, 16] x) => ({outputs})
<int64[3] cut = {{-1, 4, 4}}, int64[2] join = {{-1, 12}}>
{{
    X = Reshape(x, cut)
    Z = MatMul(X, B)
    Y = MatMul(A, Z)
    y = Reshape(Y, join)
    {extra}
}}
"""


def weights(density=1.0):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 4)) * (rng.random((3, 4)) < density)
    return {"A": a.astype(np.float32), "B": dense(4, 4)}


def test_in_onnx_text():
    proto = model_from(TERMS.format(outputs="float[N, 12] y", extra=""), weights())
    model, step = recognise(proto, {"x": dense(5, 16)})
    assert op_types(model) == ["KroneckerMatMul"]
    assert len(step.applied) == 1


def test_an_intermediate_read_elsewhere_is_refused():
    outputs, extra = "float[N, 12] y, float[N, 4, 4] r", "r = Relu(Z)"
    proto = model_from(TERMS.format(outputs=outputs, extra=extra), weights())
    model, step = recognise(proto, {"x": dense(5, 16)})
    assert layers(model) == []
    assert "its intermediate Z is also read by Relu" in step.refused[0].text


def test_an_intermediate_that_is_an_output_is_refused():
    proto = model_from(
        TERMS.format(outputs="float[N, 12] y, float[N, 4, 4] Z", extra=""), weights()
    )
    model, step = recognise(proto, {"x": dense(5, 16)})
    assert layers(model) == []
    assert "its intermediate Z is an output of the graph" in step.refused[0].text


def test_independent_factors_are_refused():
    # A full sum over the block's positions: any matrix can be written so.
    rng = np.random.default_rng(0)
    proto = model_from(
        """
        agraph (float[N, 16] x) => (float[N, 12] y)
        <int64[3] cut = {-1, 4, 4}, int64[2] join = {-1, 12}>
        {
            X = Reshape(x, cut)
            Y = Einsum<equation = "nqw,rpq,rhw->nph">(X, A, B)
            y = Reshape(Y, join)
        }
        """,
        {
            "A": rng.standard_normal((16, 3, 4)).astype(np.float32),
            "B": rng.standard_normal((16, 4, 4)).astype(np.float32),
        },
    )
    model, step = recognise(proto, {"x": dense(5, 16)})
    assert layers(model) == []
    assert step.refused[0].text.startswith("looks factorized, but ")


def test_a_region_that_mixes_rows_is_refused():
    # The outer Reshape gathers [8, 16] differently than the inner one took it apart.
    proto = model_from(
        """
        agraph (float[8, 16] x) => (float[8, 16] y)
        <int64[3] cut = {16, 2, 4}, int64[2] join = {8, 16}>
        {
            X = Reshape(x, cut)
            Z = MatMul(X, B)
            T = Transpose<perm = [1, 0, 2]>(Z)
            Y = MatMul(T, C)
            y = Reshape(Y, join)
        }
        """,
        {"B": dense(4, 4), "C": dense(4, 4, seed=2)},
    )
    model, step = recognise(proto, {"x": dense(8, 16)})
    assert layers(model) == []
    assert "looks factorized, but it does not" in step.refused[0].text


def test_a_bias_or_activation_inside_is_no_linear_region():
    for line in ("Z2 = Add(Z, c)", "Z2 = Relu(Z)"):
        text = TERMS.format(outputs="float[N, 12] y", extra="")
        text = text.replace("Y = MatMul(A, Z)", f"{line}\n Y = MatMul(A, Z2)")
        proto = model_from(text, weights() | {"c": dense(4)})
        model, step = recognise(proto, {"x": dense(5, 16)})
        assert layers(model) == []
        assert step.refused == []


def test_attention_is_left_alone():
    import torch

    attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)

    class Self(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    proto = export(Self(), (2, 5, 32))
    model, step = recognise(proto, {"x": dense(2, 5, 32)})
    assert layers(model) == []
    assert step.refused == []


def test_a_float64_graph_is_left_alone():
    text = TERMS.format(outputs="double[N, 12] y", extra="").replace(
        "float[N, 16]", "double[N, 16]"
    )
    proto = model_from(text, {k: v.astype(np.float64) for k, v in weights().items()})
    model, _ = recognise(proto, {"x": dense(5, 16).astype(np.float64)})
    assert layers(model) == []


@pytest.mark.parametrize("rows", ["1, 6", "N, 6"])
def test_heads_that_were_joined_by_the_same_reshape(rows):
    """Exporters merge «join the attention heads» with «cut into blocks» into one Reshape."""
    text = f"""
    agraph (float[{rows}, 2, 8] heads) => (float[{rows}, 12] y)
    <int64[3] cut = {{-1, 4, 4}}, int64[3] join = {{-1, 6, 12}}>
    {{
        x = Neg(heads)
        X = Reshape(x, cut)
        Z = MatMul(X, B)
        Y = MatMul(A, Z)
        y = Reshape(Y, join)
    }}
    """
    proto = model_from(text, weights())
    model, _ = recognise(proto, {"heads": dense(1, 6, 2, 8)})
    assert op_types(model) == ["Neg", "Reshape", "KroneckerMatMul"]
    assert layers(model)[0].shape == (12, 16)


@pytest.mark.parametrize("windows", ["-1, 3, 12", "-1, 1, 3, 12"])
def test_windows_whose_axes_were_joined_by_the_same_reshape(windows):
    """Swin cuts an image into windows; its layers read [N, 2, 3, 16] and write [2 N, 3, 12]."""
    text = f"""
    agraph (float[N, 2, 3, 16] image) => (float[{windows.replace("-1", "M")}] y)
    <int64[3] cut = {{-1, 4, 4}}, int64[{windows.count(",") + 1}] join = {{{windows}}}>
    {{
        x = Neg(image)
        X = Reshape(x, cut)
        Z = MatMul(X, B)
        Y = MatMul(A, Z)
        y = Reshape(Y, join)
    }}
    """
    proto = model_from(text, weights())
    model, _ = recognise(proto, {"image": dense(3, 2, 3, 16)})
    assert op_types(model) == ["Neg", "KroneckerMatMul", "Reshape"]


def test_an_image_that_was_flattened_by_the_same_reshape():
    text = """
    agraph (float[N, 4, 2, 2] image) => (float[N, 12] y)
    <int64[3] cut = {-1, 4, 4}, int64[2] join = {-1, 12}>
    {
        x = Relu(image)
        X = Reshape(x, cut)
        Z = MatMul(X, B)
        Y = MatMul(A, Z)
        y = Reshape(Y, join)
    }
    """
    proto = model_from(text, weights())
    model, _ = recognise(proto, {"image": dense(3, 4, 2, 2)})
    assert op_types(model) == ["Relu", "Reshape", "KroneckerMatMul"]


def test_a_reshape_that_only_joins_heads_is_left_alone():
    text = """
    agraph (float[N, 6, 2, 8] heads) => (float[N, 6, 12] y)
    <int64[3] cut = {-1, 6, 16}>
    {
        x = Reshape(heads, cut)
        y = MatMul(x, B)
    }
    """
    proto = model_from(text, {"B": dense(16, 12)})
    model, step = recognise(proto, {"heads": dense(3, 6, 2, 8)})
    assert op_types(model) == ["Reshape", "MatMul"]
    assert not step.applied

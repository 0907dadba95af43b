"""Operators that onnxruntime's optimizer writes: the same numbers in standard operators."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.errors import ModelError
from bscompile.importer import load_model
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.passes.split_outputs import SplitOutputs
from tests.passes.helpers import check_equal, dense, model_from, op_types, rewritten

WEIGHTS = {
    "w": dense(64, 192, seed=2), "b": dense(192, seed=3), "wide": dense(64, 160, seed=4),
    "ends": np.array([7, 3], np.int32), "more": dense(1, 4, 9, 9, seed=5),
    "gamma": dense(64, seed=6), "beta": dense(64, seed=7), "bias": dense(64, seed=8),
    "skip": dense(1, 9, 64, seed=9), "other": dense(2, 9, 64, seed=10),
    "rows": (np.arange(18).reshape(2, 9) % 5 > 0).astype(np.int32),
    "pairs": (np.arange(162).reshape(2, 9, 9) % 3 > 0).astype(np.int32),
    "keys": dense(2, 7, 64, seed=11), "values": dense(2, 7, 64, seed=12),
    "few": (np.arange(14).reshape(2, 7) % 4 > 0).astype(np.int32),
}  # fmt: skip

CASES = {
    "attention": "Attention <num_heads = 4> (x, w, b)",
    "attention without a bias": "Attention <num_heads = 4> (x, w)",
    "a scale of its own": "Attention <num_heads = 4, scale = 0.3> (x, w, b)",
    "keys masked": "Attention <num_heads = 4> (x, w, b, rows)",
    "keys masked to nothing": (
        "Attention <num_heads = 4, mask_filter_value = -3.0e38> (x, w, b, rows)"
    ),
    "pairs masked": "Attention <num_heads = 4> (x, w, b, pairs)",
    "the first keys": "Attention <num_heads = 4> (x, w, b, ends)",
    "causal": "Attention <num_heads = 4, unidirectional = 1> (x, w, b)",
    "causal and masked": "Attention <num_heads = 4, unidirectional = 1> (x, w, b, rows)",
    "a bias for each score": 'Attention <num_heads = 4> (x, w, b, "", "", more)',
    "narrow values": (
        "Attention <num_heads = 4, qkv_hidden_sizes = [64, 64, 32]> (x, wide, narrow)"
    ),
    "three tensors": "MultiHeadAttention <num_heads = 4> (x, keys, values)",
    "three tensors with a bias": "MultiHeadAttention <num_heads = 4> (x, keys, values, b)",
    "three tensors masked": "MultiHeadAttention <num_heads = 4> (x, keys, values, b, few)",
    "bias and gelu": "BiasGelu(x, bias)",
    "gelu": "Gelu(x)",
    "fast gelu": "FastGelu(x)",
    "fast gelu of a sum": "FastGelu(x, bias)",
    "quick gelu": "QuickGelu <alpha = 1.5> (x)",
    "sum and norm": "SkipLayerNormalization <epsilon = 1.0e-5> (x, skip, gamma, beta, bias)",
    "sum and norm, short": "SkipLayerNormalization(x, other, gamma)",
    "sum and root mean square": (
        "SkipSimplifiedLayerNormalization <epsilon = 1.0e-5> (x, other, gamma, bias)"
    ),
    "product turned": "FusedMatMul <transB = 1, alpha = 0.5> (x, other)",
    "product": "FusedMatMul(x, w)",
}  # fmt: skip


def case(call: str):
    """The model of one call, and what it is fed."""
    named = WEIGHTS | {"narrow": WEIGHTS["b"][:160]}
    used = {n: a for n, a in named.items() if f"{n}," in call or f"{n})" in call}
    text = f"g (float[2, 9, 64] x) => (float[A, B, C] y) {{ y = com.microsoft.{call} }}"
    return model_from(text, used), {"x": dense(2, 9, 64)}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_means_what_onnxruntime_computes(name):
    proto, feeds = case(CASES[name])
    model = load_model(proto)
    assert not any(node.domain for node in model.graph)
    check_equal(proto, model, feeds, 256)


def test_sums_that_others_read_come_along():
    text = """g (float[2, 9, 64] x) => (float[A, B, C] y, float[A, B, C] s) {
        y, m, v, s = com.microsoft.SkipLayerNormalization(x, other, gamma)
    }"""
    text = text.replace("y, m, v, s =", 'y, "", "", s =')
    used = {"other": WEIGHTS["other"], "gamma": WEIGHTS["gamma"]}
    proto = model_from(text, used)
    check_equal(proto, load_model(proto), {"x": dense(2, 9, 64)}, 64)


def test_int8_attention_keeps_its_integers():
    rng = np.random.default_rng(0)
    text = """g (float[2, 9, 64] x) => (float[A, B, C] y) {
        q, s, z = DynamicQuantizeLinear(x)
        y = com.microsoft.QAttention <num_heads = 4> (q, w, b, s, t, "", z, n)
    }"""
    weights = {
        "w": rng.integers(-90, 90, (64, 192)).astype(np.int8), "b": WEIGHTS["b"],
        "t": np.float32(0.01), "n": np.int8(0),
    }  # fmt: skip
    proto = model_from(text, weights)
    model = load_model(proto)
    assert "MatMulInteger" in op_types(model)
    check_equal(proto, model, {"x": dense(2, 9, 64)}, 256)


def test_layers_are_found_behind_them():
    """A block as the optimizer writes it: three projections, an epilogue, no copies."""
    text = """g (float[2, 9, 64] x) => (float[2, 9, 64] y) {
        a = com.microsoft.Attention <num_heads = 4> (x, w, b, rows)
        p = MatMul(a, out)  n = com.microsoft.SkipLayerNormalization(p, x, gamma, beta, bias)
        h0 = MatMul(n, up)  h = com.microsoft.BiasGelu(h0, wide)
        d = MatMul(h, down)  y = com.microsoft.SkipLayerNormalization(d, n, gamma, beta)
    }"""
    used = {k: WEIGHTS[k] for k in ("w", "b", "rows", "gamma", "beta", "bias")}
    used |= {"out": dense(64, 64), "up": dense(64, 96), "wide": dense(96), "down": dense(96, 64)}
    steps = (FoldConstants(), RecogniseLinear(), FuseEpilogues(), SplitOutputs())
    model = rewritten(model_from(text, used), *steps, feeds={"x": dense(2, 9, 64)}, k=256)
    layers = [n for n in model.graph if n.op_type == "DenseMatMul"]
    steps = [n.attributes["epilogue"].as_string() for n in layers]
    assert steps == ["bias", "bias", "bias", "bias,residual", "bias,gelu", "residual"]
    assert op_types(model).count("Add") == 1  # the mask


REFUSED = {
    "input 4 ('past')": 'Attention <num_heads = 4> (x, w, b, "", past)',
    "do_rotary": "Attention <num_heads = 4, do_rotary = 1> (x, w, b)",
    "a mask of 4 numbers for a batch of 2": "Attention <num_heads = 4> (x, w, b, starts)",
    "a mask with 4 axes": "Attention <num_heads = 4> (x, w, b, four)",
    "5 heads of [64, 64, 64] features": "Attention <num_heads = 5> (x, w, b)",
    "queries, keys and values packed into one": "MultiHeadAttention <num_heads = 4> (packed)",
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_named(what):
    shapes = {
        "past": dense(2, 2, 4, 3, 16), "starts": np.zeros(4, np.int32),
        "four": np.ones((2, 1, 9, 9), np.int32), "packed": dense(2, 9, 4, 3, 16),
    }  # fmt: skip
    call = REFUSED[what]
    used = {k: v for k, v in (shapes | WEIGHTS).items() if f"{k}," in call or f"{k})" in call}
    text = f"g (float[2, 9, 64] x) => (float[A, B, C] y) {{ y = com.microsoft.{call} }}"
    with pytest.raises(ModelError) as caught:
        load_model(model_from(text, used))
    assert what in caught.value.message
    assert "com.microsoft" in caught.value.message


def test_an_output_that_is_not_supported_is_named():
    text = """g (float[2, 9, 64] x) => (float[A, B, C] y) {
        y, present = com.microsoft.Attention <num_heads = 4> (x, w, b)
    }"""
    with pytest.raises(ModelError, match="output 1 \\('present'\\) is not supported"):
        load_model(model_from(text, {"w": WEIGHTS["w"], "b": WEIGHTS["b"]}))

"""Constant sub-graphs become one initializer, up to real sizes; bombs are left alone."""

import numpy as np
import pytest

from bscompile.importer import load_model
from bscompile.passes.fold_constants import FoldConstants
from tests.passes.helpers import dense, model_from, op_types, rewritten


def fold(text, weights, feeds, k=64):
    step = FoldConstants()
    return rewritten(model_from(text, weights), step, feeds=feeds, k=k), step


def test_a_scaled_and_transposed_weight():
    text = """g (float[N, 8] x) => (float[N, 6] y) {
        sa = Mul(s, a)
        w = Transpose<perm: ints = [1, 0]>(sa)
        y = MatMul(x, w)
    }"""
    model, step = fold(text, {"s": dense(6, 8), "a": dense(6, 8, seed=2)}, {"x": dense(3, 8)})
    assert op_types(model) == ["MatMul"]
    assert len(model.graph.initializers) == 1
    assert step.applied[0].text == "2 of 3 nodes folded away"


def test_a_kron_chain_of_real_size():
    text = """g (float[N, 768] x) => (float[N, 3072] y) {
        f = Mul(a, b)
        s = ReduceSum<keepdims: int = 0>(f, zero)
        w = Reshape(s, shape)
        wt = Transpose<perm: ints = [1, 0]>(w)
        y = MatMul(x, wt)
    }"""
    weights = {
        "a": dense(2, 384, 1, 96, 1),
        "b": dense(2, 1, 8, 1, 8),
        "zero": np.array([0]),
        "shape": np.array([3072, 768]),
    }
    model, _ = fold(text, weights, {"x": dense(2, 768)}, k=768)
    assert op_types(model) == ["MatMul"]
    (weight,) = model.graph.initializers.values()
    assert weight.const_value.numpy().shape == (768, 3072)


def test_gather_concat_and_einsum():
    text = """g (float[N, 8] x) => (float[N, 8] y) {
        p = Gather<axis: int = 0>(w, order)
        q = Concat<axis: int = 1>(p, p)
        e = Einsum<equation: string = "ij,kj->ik">(q, q)
        y = MatMul(x, e)
    }"""
    weights = {"w": dense(8, 4), "order": np.arange(8)[::-1].copy()}
    model, _ = fold(text, weights, {"x": dense(3, 8)})
    assert op_types(model) == ["MatMul"]


def test_identity_dropout_and_dead_code_go():
    text = """g (float[N, 8] x) => (float[N, 8] y) {
        a = Identity(x)
        b, mask = Dropout(a)
        dead = Relu(a)
        y = Neg(b)
    }"""
    model, _ = fold(text, {}, {"x": dense(3, 8)})
    assert op_types(model) == ["Neg"]


def test_constant_nodes_become_initializers():
    text = """g (float[N, 3] x) => (float[N, 3] y) {
        c = Constant<value: tensor = float[3] {1.0, 2.0, 3.0}>()
        y = Add(x, c)
    }"""
    model, _ = fold(text, {}, {"x": dense(2, 3)})
    assert op_types(model) == ["Add"]
    assert [v.const_value.numpy().tolist() for v in model.graph.initializers.values()] == [
        [1.0, 2.0, 3.0]
    ]


def test_a_constant_output_survives():
    text = """g (float[N] x) => (float[N] y, float[2, 2] c) {
        y = Neg(x)
        c = MatMul(a, a)
    }"""
    model, _ = fold(text, {"a": dense(2, 2)}, {"x": dense(3)})
    assert [value.name for value in model.graph.outputs] == ["y", "c"]


@pytest.mark.parametrize(
    "maker",
    [
        "c = ConstantOfShape(big)",
        "c = Expand(one, big)",
        "c = Tile(one, big)",
    ],
)
def test_a_few_bytes_that_ask_for_gigabytes_are_not_computed(maker):
    text = f"""g (float[N] x) => (float y) {{
        {maker}
        z = Cast<to: int = 1>(c)
        s = ReduceSum<keepdims: int = 0>(z)
        t = ReduceSum<keepdims: int = 0>(x)
        y = Add(s, t)
    }}"""
    weights = {"big": np.array([40_000, 40_000]), "one": np.ones((1, 1), np.float32)}
    model = load_model(model_from(text, weights))
    FoldConstants()(model)
    assert maker.split()[2].split("(")[0] in op_types(model)


def test_an_outer_product_over_the_limit_is_refused_with_its_size():
    text = """g (float[N] x) => (float y) {
        c = Mul(a, b)
        s = ReduceSum<keepdims: int = 0>(c)
        t = ReduceSum<keepdims: int = 0>(x)
        y = Add(s, t)
    }"""
    weights = {"a": dense(20_000, 1), "b": dense(1, 20_000)}
    step = FoldConstants()
    model = load_model(model_from(text, weights))
    step(model)
    assert "Mul" in op_types(model)
    assert "1600000000 bytes" in step.refused[0].text


def test_an_output_that_is_a_copy_of_another_keeps_its_name():
    text = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
        y = Relu(x)
        z = Identity(y)
    }"""
    model, _ = fold(text, {}, {"x": dense(3, 4)})
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert op_types(model) == ["Relu", "Identity"]

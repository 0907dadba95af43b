"""Layers whose results are read in parts: cut for attention, left alone elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bscompile import targets
from bscompile.dialect import dense_weight, is_dialect, read_node
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.passes.absorb_reshape import AbsorbReshape
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.permute_features import PermuteFeatures
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.passes.recover_factors import RecoverFactors
from bscompile.passes.shrink import Shrink
from bscompile.passes.split_outputs import SplitOutputs
from bscompile.targets.planner import plan
from tests.passes.fused_attention import BATCH, SPELLINGS, STEPS, WIDTH, text_of, weights
from tests.passes.helpers import blocky, dense, model_from, op_types, rewritten

EVERY = [*SPELLINGS, "torch"]


@pytest.fixture(scope="module")
def price():
    context = replace(targets.resolve("cpu", threads=1), buckets=())

    def ask(op, rows, dtype, step=1):
        return plan(op, rows, dtype, context, step)

    return ask


def run(text, arrays, *later):
    """(the pass, the layers after it and later ones, the model)."""
    step = SplitOutputs()
    feeds = {"x": dense(BATCH, STEPS, WIDTH, seed=9)}
    model = rewritten(
        model_from(text, arrays), FoldConstants(), RecogniseLinear(), AbsorbReshape(),
        FuseEpilogues(), step, *later, feeds=feeds, k=256,
    )  # fmt: skip
    return step, [read_node(node) for node in model.graph if is_dialect(node)], model


def count(matrices, block):
    """Live blocks of several W [out, in]."""
    return sum(BlockSparseMatrix.from_dense(w, (block, block)).nnzb for w in matrices)


def within(heads, inside, seed):
    """An order of the features of each head."""
    rng = np.random.default_rng(seed)
    return np.concatenate([h * inside + rng.permutation(inside) for h in range(heads)])


@pytest.mark.parametrize("spelling", EVERY)
def test_features_shuffled_within_heads_are_recovered(spelling, price):
    heads, inside, block = 2, 32, 8
    orders = within(heads, inside, 0), within(heads, inside, 1)
    arrays, plain = weights(spelling, heads, inside, block, orders)
    permute = PermuteFeatures(price)
    step, layers, model = run(text_of(spelling), arrays, permute)
    assert len(step.applied) == 1
    assert "64 + 64 + 64 outputs" in step.applied[0].text
    assert not {"Split", "Slice", "Gather", "Squeeze", "Unsqueeze"} & set(op_types(model))
    assert len(permute.applied) == 2  # queries with keys, values with what reads them
    assert count([dense_weight(layer.weight) for layer in layers], block) == count(plain, block)


@pytest.mark.parametrize("spelling", EVERY)
def test_heads_narrower_than_a_block_are_moved_whole(spelling, price):
    heads, inside, block = 16, 4, 16
    moved = np.random.default_rng(0).permutation(heads)
    cells = (moved[:, None] * inside + np.arange(inside)).reshape(-1)
    arrays, plain = weights(spelling, heads, inside, block, (cells, cells))
    permute = PermuteFeatures(price)
    _, layers, _ = run(text_of(spelling), arrays, permute)
    (note,) = permute.applied
    assert note.text.startswith(f"another order of {heads} features")
    assert count([dense_weight(layer.weight) for layer in layers], block) == count(plain, block)


@pytest.mark.parametrize("spelling", ["unbind", "within heads", "torch"])
def test_a_dead_head_goes(spelling):
    heads, inside = 4, 16
    every = np.arange(heads * inside)
    arrays, _ = weights(spelling, heads, inside, 8, (every, every))
    arrays["out"][inside : 2 * inside] = 0  # nobody reads the second head
    shrink = Shrink()
    _, layers, _ = run(text_of(spelling), arrays, shrink)
    assert {48} <= {side for layer in layers for side in layer.shape}
    assert any("4 features become 3" in note.text for note in shrink.applied)


def test_the_order_of_two_heads_that_a_shuffle_mixed_stays(price):
    """Features of one head may not go to another: no order of the graph's gives the blocks back."""
    heads, inside = 2, 32
    mixed = np.random.default_rng(0).permutation(heads * inside)
    arrays, plain = weights("unbind", heads, inside, 8, (mixed, mixed))
    _, layers, _ = run(text_of("unbind"), arrays, PermuteFeatures(price))
    assert count([dense_weight(layer.weight) for layer in layers], 8) > 1.2 * count(plain, 8)


def test_symbolic_batch_and_steps_keep_their_names():
    text = text_of("unbind").replace("float[2, 24, 64] x", "float[B, S, 64] x")
    text = text.replace("float[2, 24, 64] y", "float[B, S, 64] y")
    every = np.arange(64)
    arrays, _ = weights("unbind", 2, 32, 8, (every, every))
    arrays["three"], arrays["whole"] = np.array([0, 0, 3, 2, 32]), np.array([0, 0, 64])
    step, layers, model = run(text, arrays)
    assert len(step.applied) == 1
    assert [layer.shape for layer in layers] == [(64, 64)] * 4
    assert "Gather" not in op_types(model)


def test_a_computed_target_is_computed_again():
    text = text_of("unbind").replace("float[2, 24, 64]", "float[B, S, 64]").replace(
        "five = Reshape(qkv, three)",
        "lead = Shape <end = 2> (x)  asked = Concat <axis = 0> (lead, tail)"
        "  five = Reshape(qkv, asked)",
    )  # fmt: skip
    every = np.arange(64)
    arrays, _ = weights("unbind", 2, 32, 8, (every, every))
    arrays["tail"], arrays["whole"] = np.array([3, 2, 32]), np.array([0, 0, 64])
    del arrays["three"]
    step, _, _ = run(text, arrays)
    assert len(step.applied) == 1


def test_a_part_that_leaves_the_graph_keeps_its_name():
    text = text_of("split").replace("=> (float[2, 24, 64] y)", "=> (float[2, 24, 64] y, k0)")
    text = text.replace("k0)", "float[2, 24, 64] k0)", 1)
    every = np.arange(64)
    arrays, _ = weights("split", 2, 32, 8, (every, every))
    step, _, model = run(text, arrays)
    assert len(step.applied) == 1
    assert [value.name for value in model.graph.outputs] == ["y", "k0"]


UNTOUCHED = {
    "read whole besides": (
        "g (float[2, 24, 64] x) => (float[2, 24, 24] y, float[2, 24, 128] a) {"
        " a = MatMul(x, w)  p, q = Split <axis = -1, num_outputs = 2> (a)"
    ),
    "parts that overlap": (
        "g (float[2, 24, 64] x) => (float[2, 24, 24] y) {"
        " a = MatMul(x, w)  p = Slice(a, zero, eighty, last)  q = Slice(a, end, many, last)"
    ),
    "parts along another axis": (
        "g (float[2, 24, 64] x) => (float[1, 24, 24] y) {"
        " a = MatMul(x, w)  p, q = Split <axis = 0, num_outputs = 2> (a)"
    ),
    "one column each": (
        "g (float[2, 24, 64] x) => (float[2, 2] y) {"
        " a = MatMul(x, w)  p = Gather <axis = 2> (a, first)  q = Gather <axis = 2> (a, second)"
    ),
    "mixed by a transpose": (
        "g (float[2, 24, 64] x) => (float[2, 24, 24] y) {"
        " a = MatMul(x, w)  c = Reshape(a, cut)  d = Transpose <perm = [0, 1, 3, 2]> (c)"
        " e = Reshape(d, flat)  p, q = Split <axis = -1, num_outputs = 2> (e)"
    ),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_what_is_no_cut_of_features_stays(case):
    ints = {
        "zero": [0], "eighty": [80], "end": [-80], "many": [1000], "last": [-1],
        "cut": [2, 24, 4, 32], "flat": [2, 24, 128],
    }  # fmt: skip
    text = UNTOUCHED[case]
    turned = "perm = [1, 0]" if case == "one column each" else "perm = [0, 2, 1]"
    text += f" t = Transpose <{turned}> (q) y = MatMul(p, t) }}"
    arrays = {"w": dense(64, 128)} | {
        k: np.array(v) for k, v in ints.items() if f"{k})" in text or f"{k}," in text
    }
    arrays |= {k: np.array(i) for i, k in enumerate(("first", "second")) if k in text}
    step, layers, _ = run(text, arrays)
    assert not step.applied
    assert [layer.shape for layer in layers] == [(128, 64)]


def test_gates_are_cut_where_they_are_used():
    text = """g (float[2, 24, 64] x) => (float[2, 24, 64] y) {
        a = MatMul(x, w)  p, q = Split <axis = -1, num_outputs = 2> (a)
        s = Sigmoid(p)  g = Mul(s, q)  y = MatMul(g, out)
    }"""
    step, layers, _ = run(text, {"w": dense(64, 128), "out": dense(64, 64)})
    assert not step.applied
    assert not step.refused
    assert [layer.shape for layer in layers] == [(128, 64), (64, 64)]


def test_a_computed_addend_keeps_the_layer_and_says_so():
    text = text_of("split").replace(
        "qkv = Add(product, b)", "more = Relu(product2)  qkv = Add(product, more)"
    )
    text = text.replace("product = ", "product2 = MatMul(x, w2)  product = ")
    every = np.arange(64)
    arrays, _ = weights("split", 2, 32, 8, (every, every))
    del arrays["b"]
    step, _, _ = run(text, arrays | {"w2": dense(64, 192)})
    assert not step.applied
    assert "read in 3 parts, but what is added to its result is computed" in step.refused[0].text


@pytest.mark.parametrize(("size", "applied"), [(64, True), (60, False)])
def test_factors_are_cut_between_blocks_only(size, applied):
    rng = np.random.default_rng(0)
    a = (rng.standard_normal((1, 3 * size // 4 // 3 * 3 // 3 * 3 if False else 24, 8))).astype(
        np.float32
    )
    a *= rng.random(a.shape) < 0.4
    factors = KroneckerSum(a, rng.standard_normal((1, 8, 8)).astype(np.float32))
    whole = factors.to_block_sparse().to_dense()  # [192, 64]
    text = """g (float[2, 24, 64] x) => (float[2, 24, 24] y) {
        a = MatMul(x, w)  p, q, r = Split <axis = -1> (a, sizes)
        t = Transpose <perm = [0, 2, 1]> (q)  y = MatMul(p, t)
    }"""
    step = SplitOutputs()
    arrays = {"w": np.ascontiguousarray(whole.T), "sizes": np.array([size, size, 192 - 2 * size])}
    model = rewritten(
        model_from(text, arrays), RecogniseLinear(), RecoverFactors(), step,
        feeds={"x": dense(BATCH, STEPS, WIDTH)}, k=256,
    )  # fmt: skip
    assert bool(step.applied) is applied
    layers = [read_node(node) for node in model.graph if is_dialect(node)]
    assert all(isinstance(layer.weight, KroneckerSum) for layer in layers)
    assert [layer.shape[0] for layer in layers] == ([64, 64] if applied else [192])
    assert applied or "its factors would be cut inside a block" in step.refused[0].text


def test_each_part_is_looked_at_for_blocks_of_its_own():
    """Dense queries beside sparse keys: together they were too dense for blocks."""
    w = np.concatenate([dense(64, 64), dense(64, 64), blocky((64, 64), (16, 16), 0.3)], axis=1)
    text = """g (float[2, 24, 64] x) => (float[2, 24, 24] y, float[2, 24, 64] r) {
        a = MatMul(x, w)  p, q, r = Split <axis = -1, num_outputs = 3> (a)
        t = Transpose <perm = [0, 2, 1]> (q)  y = MatMul(p, t)
    }"""
    _, layers, _ = run(text, {"w": w})
    assert [layer.form for layer in layers] == ["dense", "dense", "block_sparse"]
    assert layers[2].weight.block == (16, 16)

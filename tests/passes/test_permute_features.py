"""Hidden features in another order: taken where the price says so, never where order is seen."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bscompile import targets
from bscompile.dialect import FOUND_KEY, dense_weight, is_dialect, read_node
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.permute_features import PermuteFeatures
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.targets.planner import plan
from tests.passes.helpers import KeepForm, blocky, dense, model_from, rewritten

FLOAT = np.dtype(np.float32)


@pytest.fixture(scope="module")
def price():
    context = replace(targets.resolve("cpu", threads=1), buckets=())

    def ask(op, rows, dtype, step=1):
        return plan(op, rows, dtype, context, step)

    return ask


def run(text, weights, feeds, price):
    """(passes' notes, layers by name) of a model after the pass."""
    step = PermuteFeatures(price)
    model = rewritten(
        model_from(text, weights), RecogniseLinear(), FuseEpilogues(), step, feeds=feeds
    )
    return step, [read_node(node) for node in model.graph if is_dialect(node)], model


def hidden(seed=0, k=64, n=256, block=8, density=0.15):
    """W1 [k, n], b1 [n], W2 [n, k] in blocks, and the same with the n features shuffled."""
    first = blocky((k, n), (block, block), density, seed=seed)
    second = blocky((n, k), (block, block), density, seed=seed + 1)
    bias = dense(n, seed=seed + 2)
    order = np.random.default_rng(seed).permutation(n)
    return (first, bias, second), (first[:, order], bias[order], second[order])


FFN = """g (float[128, 64] x) => (float[128, 64] y) {
    a = MatMul(x, w1)  h = Add(a, b1)  r = Relu(h)  y = MatMul(r, w2)
}"""


def named(arrays):
    return dict(zip(("w1", "b1", "w2"), arrays, strict=True))


def test_blocks_shuffled_by_a_hidden_permutation_are_recovered(price):
    plain, shuffled = hidden()
    feeds = {"x": dense(128, 64, seed=9)}
    step, layers, model = run(FFN, named(shuffled), feeds, price)
    (note,) = step.applied
    counts = [BlockSparseMatrix.from_dense(w.T, (8, 8)).nnzb for w in (plain[0], plain[2])]
    before = [BlockSparseMatrix.from_dense(w.T, (8, 8)).nnzb for w in (shuffled[0], shuffled[2])]
    assert [layer.weight.block for layer in layers] == [(8, 8), (8, 8)]
    assert [layer.weight.nnzb for layer in layers] == counts
    for was, now in zip(before, counts, strict=True):
        assert f"8x8 {was} > {now}" in note.text or "16x8" in note.text
    found = [json.loads(n.metadata_props[FOUND_KEY]) for n in model.graph if is_dialect(n)]
    assert [entry["kind"] for entry in found] == ["block", "block"]
    np.testing.assert_array_equal(
        np.sort(dense_weight(layers[0].weight).sum(axis=1)), np.sort(shuffled[0].T.sum(axis=1))
    )


def factorized(rng, grid, rank):
    """W in 8x8 blocks of that many terms, none of its block rows and columns empty."""
    live = rng.random(grid) < 0.3
    live[0], live[:, 0] = True, True
    a = (rng.standard_normal((rank, *grid)) * live).astype(np.float32)
    factors = KroneckerSum(a, rng.standard_normal((rank, 8, 8)).astype(np.float32))
    return factors.to_block_sparse().to_dense()


@pytest.mark.parametrize(("rank", "form"), [(1, KroneckerSum), (2, BlockSparseMatrix)])
def test_a_term_that_a_shuffle_hid_is_found_again(price, rank, form):
    """One term on each side of the shuffled features is; two come back as blocks."""
    rng = np.random.default_rng(0)
    first, second = factorized(rng, (32, 8), rank), factorized(rng, (8, 32), rank)
    order = rng.permutation(256)
    arrays = named((first[order].T, dense(256), second[:, order].T))
    step, layers, _ = run(FFN, arrays, {"x": dense(128, 64, seed=9)}, price)
    assert len(step.applied) == 1
    for layer in layers:
        assert type(layer.weight) is form
        assert layer.weight.block == (8, 8)
        assert form is BlockSparseMatrix or layer.weight.rank == 1


def test_what_is_in_order_stays(price):
    plain, _ = hidden()
    step, layers, _ = run(FFN, named(plain), {"x": dense(128, 64)}, price)
    assert not step.applied
    np.testing.assert_array_equal(dense_weight(layers[0].weight), plain[0].T)


def test_scattered_zeros_gain_nothing_and_stay(price):
    rng = np.random.default_rng(0)
    weights = [w * (rng.random(w.shape) < 0.1) for w in (dense(64, 256), dense(256, 64))]
    arrays = {"w1": weights[0], "b1": dense(256), "w2": weights[1]}
    step, layers, _ = run(FFN, arrays, {"x": dense(128, 64)}, price)
    assert not step.applied
    assert [layer.form for layer in layers] == ["dense", "dense"]


def test_a_price_that_sees_no_gain_is_believed():
    _, shuffled = hidden()
    step, _, _ = run(
        FFN, named(shuffled), {"x": dense(128, 64)},
        lambda op, rows, dtype, step=1: KeepForm(op.weight),
    )  # fmt: skip
    assert not step.applied


def test_the_border_of_the_graph_keeps_its_order(price):
    _, (first, bias, _) = hidden()
    text = """g (float[128, 64] x) => (float[128, 256] y) {
        a = MatMul(x, w1)  y = Add(a, b1)
    }"""
    step, _, _ = run(text, {"w1": first, "b1": bias}, {"x": dense(128, 64)}, price)
    assert not step.applied
    texts = [note.text for note in step.refused]
    assert any("outputs keep their order: it is an output of the graph" in t for t in texts)
    assert any("inputs keep their order: it comes from outside the layers" in t for t in texts)


def test_norms_residuals_and_gates_take_the_order_along(price):
    """h = layernorm(x W1), g = sigmoid(h * s) * h + h, mean taken off; z = g W2."""
    _, (first, bias, second) = hidden(n=192)
    text = """g (float[128, 64] x) => (float[128, 64] y) {
        a = MatMul(x, w1)  h = Add(a, b1)
        n = LayerNormalization <axis = -1> (h, scale, shift)
        m = ReduceMean <keepdims = 1> (n, last)
        c = Sub(n, m)
        s = Mul(c, scale)  g = Sigmoid(s)  p = Mul(g, c)  r = Add(p, h)
        q = Softmax <axis = -1> (r)
        y = MatMul(q, w2)
    }"""
    weights = {
        "w1": first, "b1": bias, "w2": second, "scale": dense(192, seed=5),
        "shift": dense(192, seed=6), "last": np.array([-1]),
    }  # fmt: skip
    step, layers, _ = run(text, weights, {"x": dense(128, 64)}, price)
    assert len(step.applied) == 1
    assert {layer.weight.block[0] % 8 for layer in layers} == {0}


ATTENTION = """g (float[2, 64, 64] x) => (float[2, 64, 64] y) {{
    q0 = MatMul(x, wq)  k0 = MatMul(x, wk)  v0 = MatMul(x, wv)
    q1 = Reshape(q0, heads)  k1 = Reshape(k0, heads)  v1 = Reshape(v0, heads)
    q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
    k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    {scale}
    s = MatMul(q3, k2)  p = Softmax <axis = -1> (s)
    z0 = MatMul(p, v2)  z1 = Transpose <perm = [0, 2, 1, 3]> (z0)
    z = Reshape(z1, whole)
    y = MatMul(z, wo)
}}"""


def attention(width=64, heads=2):
    """Weights [in, out] in 8x8 blocks, their heads shuffled each for itself."""
    rng = np.random.default_rng(0)
    size = heads * width
    made = [blocky((64, size), (8, 8), 0.3, seed=s) for s in range(3)]
    out = blocky((size, 64), (8, 8), 0.3, seed=3)
    cells = [
        np.concatenate([h * width + rng.permutation(width) for h in range(heads)]) for _ in "kv"
    ]
    wq, wk, wv = made[0][:, cells[0]], made[1][:, cells[0]], made[2][:, cells[1]]
    return {
        "wq": wq, "wk": wk, "wv": wv, "wo": out[cells[1]],
        "heads": np.array([2, 64, heads, width]), "whole": np.array([2, 64, size]),
    }  # fmt: skip


def test_features_of_heads_are_ordered_within_their_head(price):
    text = ATTENTION.format(scale="q3 = Mul(q2, eighth)")
    weights = attention() | {"eighth": np.float32([0.125])}
    step, layers, _ = run(text, weights, {"x": dense(2, 64, 64)}, price)
    assert len(step.applied) == 2  # queries with keys, values with what reads them
    assert {side % 8 for layer in layers for side in layer.weight.block} == {0}
    assert not any("head" in note.text for note in step.refused)


def test_heads_narrower_than_a_block_are_moved_whole(price):
    """16 heads of 4 features, blocks of 16: four heads that belong together were torn apart."""
    heads, width = 16, 4
    size = heads * width
    order = np.random.default_rng(0).permutation(heads)
    cells = (order[:, None] * width + np.arange(width)).reshape(-1)
    plain = [blocky((64, size), (16, 16), 0.3, seed=s) for s in range(3)]
    plain.append(blocky((size, 64), (16, 16), 0.3, seed=3))
    torn = [*(w[:, cells] for w in plain[:3]), plain[3][cells]]
    weights = {
        **dict(zip(("wq", "wk", "wv", "wo"), torn, strict=True)),
        "heads": np.array([2, 64, heads, width]), "whole": np.array([2, 64, size]),
        "half": np.float32([0.5]),
    }  # fmt: skip
    text = ATTENTION.format(scale="q3 = Mul(q2, half)")
    step, layers, _ = run(text, weights, {"x": dense(2, 64, 64)}, price)
    (note,) = step.applied
    assert note.text.startswith(f"another order of {heads} features")
    counts = [
        sum(BlockSparseMatrix.from_dense(w, (16, 16)).nnzb for w in weights)
        for weights in (
            [dense_weight(layer.weight) for layer in layers],
            [w.T for w in plain],
            [w.T for w in torn],
        )
    ]
    assert counts[0] == counts[1] < 0.7 * counts[2]


def test_a_bias_of_its_own_for_each_head_moves_along_or_keeps_them(price):
    """Scores get a constant [heads, s, s]: it is reordered; one of [heads, 1, width] keeps them."""
    heads, width = 16, 4
    cells = np.random.default_rng(1).permutation(heads)
    cells = (cells[:, None] * width + np.arange(width)).reshape(-1)
    weights = {
        "wq": blocky((64, 64), (16, 16), 0.3)[:, cells],
        "wk": blocky((64, 64), (16, 16), 0.3, seed=1)[:, cells],
        "wv": blocky((64, 64), (16, 16), 0.3, seed=2)[:, cells],
        "wo": blocky((64, 64), (16, 16), 0.3, seed=3)[cells],
        "heads": np.array([2, 64, heads, width]), "whole": np.array([2, 64, 64]),
        "each": dense(1, heads, 64, 64, seed=8), "half": np.float32([0.5]),
    }  # fmt: skip
    text = ATTENTION.format(scale="q3 = Mul(q2, half)").replace(
        "p = Softmax <axis = -1> (s)", "t = Add(s, each)  p = Softmax <axis = -1> (t)"
    )
    step, _, _ = run(text, weights, {"x": dense(2, 64, 64)}, price)
    assert len(step.applied) == 1


def test_a_constant_that_tells_the_features_of_a_head_apart_blocks_it(price):
    text = ATTENTION.format(scale="q3 = Mul(q2, each)")
    weights = attention() | {"each": dense(64, seed=8)}
    step, _, _ = run(text, weights, {"x": dense(2, 64, 64)}, price)
    assert len(step.applied) == 1
    assert any("tells the features of a head apart" in note.text for note in step.refused)


def test_a_product_of_a_value_with_itself_over_other_axes_blocks_it(price):
    """G = hᵀ h has the features on both of its axes."""
    _, (first, bias, second) = hidden()
    text = """g (float[128, 64] x) => (float[256, 64] y) {
        a = MatMul(x, w1)  h = Add(a, b1)
        t = Transpose <perm = [1, 0]> (h)
        g = MatMul(t, h)  y = MatMul(g, w2)
    }"""
    arrays = {"w1": first, "b1": bias, "w2": second}
    step, _, _ = run(text, arrays, {"x": dense(128, 64)}, price)
    assert not step.applied


ROTARY = """g (float[2, 24, 64] x) => (float[2, 24, 64] y) {
    q0 = MatMul(x, wq)  k0 = MatMul(x, wk)  v0 = MatMul(x, wv)
    q1 = Reshape(q0, heads)  k1 = Reshape(k0, groups)  v1 = Reshape(v0, groups)
    q2 = Transpose <perm = [0, 2, 1, 3]> (q1)  k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    qa, qb = Split <axis = -1, num_outputs = 2> (q2)  qm = Neg(qb)  qt = Concat <axis = -1> (qm, qa)
    qc = Mul(q2, cos)  qs = Mul(qt, sin)  q = Add(qc, qs)
    ka, kb = Split <axis = -1, num_outputs = 2> (k2)  km = Neg(kb)  kt = Concat <axis = -1> (km, ka)
    kc = Mul(k2, cos)  ks = Mul(kt, sin)  k3 = Add(kc, ks)
    k4 = Unsqueeze(k3, two)  k5 = Expand(k4, each)  k6 = Reshape(k5, repeated)
    v4 = Unsqueeze(v2, two)  v5 = Expand(v4, each)  v = Reshape(v5, repeated)
    k = Transpose <perm = [0, 1, 3, 2]> (k6)
    s = MatMul(q, k)  p = Softmax <axis = -1> (s)
    z0 = MatMul(p, v)  z1 = Transpose <perm = [0, 2, 1, 3]> (z0)  z = Reshape(z1, whole)
    y = MatMul(z, wo)
}"""


def rotary(groups, each, width, order, cells):
    """Weights [in, out] of grouped-query attention in 16x16 blocks, groups and features moved."""
    sizes = (groups * each * width, groups * width)
    turns = {"cos": dense(1, 1, 24, width, seed=5), "sin": dense(1, 1, 24, width, seed=6)}
    plain = [
        blocky((64, n), (16, 16), 0.3, seed=s) for s, n in enumerate((sizes[0], *sizes[1:] * 2))
    ]
    plain.append(blocky((sizes[0], 64), (16, 16), 0.3, seed=3))

    def entries(run):
        inside = np.arange(run * width).reshape(run, width)[:, cells].reshape(-1)
        return (order[:, None] * run * width + inside).reshape(-1)

    wide, narrow = entries(each), entries(1)
    weights = [plain[0][:, wide], plain[1][:, narrow], plain[2][:, narrow], plain[3][wide]]
    shapes = {
        "heads": [2, 24, groups * each, width], "groups": [2, 24, groups, width], "two": [2],
        "each": [2, groups, each, 24, width], "repeated": [2, groups * each, 24, width],
        "whole": [2, 24, sizes[0]],
    }  # fmt: skip
    named = dict(zip(("wq", "wk", "wv", "wo"), weights, strict=True))
    return named | turns | {k: np.array(v) for k, v in shapes.items()}, [w.T for w in plain]


def blocks(layers, block):
    return sum(BlockSparseMatrix.from_dense(w, (block, block)).nnzb for w in layers)


def test_groups_of_queries_move_with_the_head_that_they_share(price):
    """Rotary positions within heads, each key head read by two query heads."""
    order = np.random.default_rng(0).permutation(16)
    weights, plain = rotary(16, 2, 4, order, np.arange(4))
    step, layers, _ = run(ROTARY, weights, {"x": dense(2, 24, 64)}, price)
    assert any(note.text.startswith("another order of 16 features") for note in step.applied)
    assert blocks([dense_weight(layer.weight) for layer in layers], 16) == blocks(plain, 16)


def test_rotary_positions_keep_the_features_of_queries_and_keys(price):
    """The values' features may move, those that are turned in pairs may not."""
    weights, _ = rotary(2, 2, 64, np.arange(2), np.random.default_rng(0).permutation(64))
    step, layers, _ = run(ROTARY, weights, {"x": dense(2, 24, 64)}, price)
    np.testing.assert_array_equal(dense_weight(layers[0].weight).T, weights["wq"])
    np.testing.assert_array_equal(dense_weight(layers[1].weight).T, weights["wk"])
    assert any("its outputs keep their order" in note.text for note in step.refused)

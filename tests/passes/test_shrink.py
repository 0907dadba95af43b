import numpy as np
import pytest
from onnx import numpy_helper

from bscompile.dialect import is_dialect, read_node
from bscompile.importer import load_model
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.recognise_factorized import RecogniseFactorized
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.passes.recover_factors import RecoverFactors
from bscompile.passes.shrink import Shrink
from tests.passes.helpers import blocky, check_equal, dense, model_from


def shrink(proto, feeds, k=64, fuse=True, recover=False):
    model = load_model(proto)
    steps = [FoldConstants(), RecogniseFactorized(), RecogniseLinear()]
    steps += [RecoverFactors()] * recover + [FuseEpilogues()] * fuse
    step = Shrink()
    for each in (*steps, step):
        each(model)
    check_equal(proto, model, feeds, k)
    return model, step


def shapes(model):
    return [read_node(node).shape for node in model.graph if is_dialect(node)]


def without(weight, rows=(), columns=()):
    """The weight with zero rows and columns."""
    weight = weight.copy()
    weight[list(rows)] = 0
    weight[:, list(columns)] = 0
    return weight


MLP = """
agraph (float[N, 12] x) => (float[N, 10] z)
{{
    a = Gemm<transB = 1>(x, W1, b1)
    {middle}
    z = Gemm<transB = 1>(y, W2, b2)
}}
"""


def mlp(middle="y = Relu(a)", rows=(), columns=(), hidden=20, **changed):
    weights = {
        "W1": without(dense(hidden, 12), rows=rows),
        "b1": dense(hidden, seed=2),
        "W2": without(dense(10, hidden, seed=3), columns=columns),
        "b2": dense(10, seed=4),
    } | changed
    return model_from(MLP.format(middle=middle), weights)


X = {"x": dense(5, 12, seed=9)}


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(
    "middle",
    [
        "y = Relu(a)",
        "y = Gelu(a)",
        "y = Tanh(a)",
        "s = Sigmoid(a) y = Mul(a, s)",
        "y = Clip(a, low, high)",
        "t = Mul(a, scale) y = Add(t, offset)",
        "y = Identity(a)",
    ],
)
def test_constant_outputs_fold_into_the_next_bias(middle, fuse):
    extra = {
        "low": np.float32(-0.5),
        "high": np.float32(0.5),
        "scale": dense(20, seed=5),
        "offset": dense(1, 20, seed=6),
    }
    proto = mlp(middle, rows=(0, 7, 19), **extra)
    model, step = shrink(proto, X, fuse=fuse)
    assert shapes(model) == [(17, 12), (10, 17)]
    assert "20 features become 17" in step.applied[0].text


def test_unused_inputs_remove_the_rows_that_make_them():
    model, _ = shrink(mlp(columns=(3, 4)), X)
    assert shapes(model) == [(18, 12), (10, 18)]


def test_dead_and_unused_features_go_together():
    model, _ = shrink(mlp(rows=(0, 3), columns=(3, 4)), X)
    assert shapes(model) == [(17, 12), (10, 17)]


def test_without_bias_a_new_one_holds_the_constants():
    text = """agraph (float[N, 12] x) => (float[N, 10] z)
    { a = MatMul(x, W1) b = Add(a, c) y = Relu(b) z = MatMul(y, W2) }"""
    weights = {
        "W1": without(dense(20, 12), rows=(1, 2)).T.copy(),
        "c": np.abs(dense(20)),
        "W2": dense(20, 10),
    }
    model, _ = shrink(model_from(text, weights), X)
    assert shapes(model) == [(18, 12), (10, 18)]
    assert read_node(model.graph[-1]).epilogue == ("bias",)


def test_no_bias_is_added_for_zeros():
    text = """agraph (float[N, 12] x) => (float[N, 10] z)
    { a = MatMul(x, W1) y = Relu(a) z = MatMul(y, W2) }"""
    weights = {"W1": without(dense(20, 12), rows=(1, 2)).T.copy(), "W2": dense(20, 10)}
    model, _ = shrink(model_from(text, weights), X)
    assert shapes(model) == [(18, 12), (10, 18)]
    assert read_node(model.graph[-1]).epilogue == ()


def test_removal_goes_on_upstream():
    # Unused outputs of the second layer leave columns of it zero, and so on.
    text = """agraph (float[N, 12] x) => (float[N, 10] z)
    { a = MatMul(x, W1) b = Relu(a) c = MatMul(b, W2) d = Relu(c) z = MatMul(d, W3) }"""
    W2 = dense(16, 14)
    W2[3, :] = 0
    W2[3, 5] = 1.0  # feature 3 of b only feeds feature 5 of d
    weights = {"W1": dense(12, 16), "W2": W2, "W3": without(dense(14, 10), rows=(5,))}
    model, _ = shrink(model_from(text, weights), X)
    assert shapes(model) == [(15, 12), (13, 15), (10, 13)]


def test_a_gate_that_is_always_zero_removes_the_other_branch_too():
    text = """agraph (float[N, 12] x) => (float[N, 10] z)
    { g = MatMul(x, Wg) s = Sigmoid(g) h = Mul(g, s) u = MatMul(x, Wu) y = Mul(h, u)
      z = MatMul(y, Wd) }"""
    weights = {
        "Wg": without(dense(20, 12), rows=(4, 5)).T.copy(),
        "Wu": dense(12, 20, seed=3),
        "Wd": dense(20, 10),
    }
    for fuse in (True, False):
        model, _ = shrink(model_from(text, weights), X, fuse=fuse)
        assert sorted(shapes(model)) == [(10, 18), (18, 12), (18, 12)]


def test_all_readers_must_agree():
    text = """agraph (float[N, 12] x) => (float[N, 10] z, float[N, 6] w)
    { y = MatMul(x, W1) z = MatMul(y, W2) w = MatMul(y, W3) }"""
    weights = {
        "W1": dense(12, 20),
        "W2": without(dense(20, 10), rows=(1, 2, 3)),
        "W3": without(dense(20, 6), rows=(2, 3, 4)),
    }
    model, _ = shrink(model_from(text, weights), X)
    assert shapes(model) == [(18, 12), (10, 18), (6, 18)]


def test_a_residual_between_layers_shrinks_with_them():
    text = """agraph (float[N, 12] x) => (float[N, 10] z)
    { a = MatMul(x, W1) r = MatMul(a, W2) s = Relu(r) y = Add(a, s) z = MatMul(y, W3) }"""
    weights = {
        "W1": without(dense(20, 12), rows=(2, 5)).T.copy(),
        "W2": without(dense(20, 20), columns=(2, 6)),
        "W3": dense(20, 10),
    }
    for fuse in (True, False):
        model, _ = shrink(model_from(text, weights), X, fuse=fuse)
        assert shapes(model) == [(19, 12), (19, 19), (10, 19)]


def test_whole_blocks_go_from_block_sparse_layers():
    W1, W2 = blocky((64, 48), (8, 8), 0.9), blocky((32, 64), (8, 8), 0.9, seed=1)
    W1[8:16] = 0
    text = """agraph (float[N, 48] x) => (float[N, 32] z)
    { a = Gemm<transB = 1>(x, W1, b) y = Relu(a) z = Gemm<transB = 1>(y, W2) }"""
    proto = model_from(text, {"W1": W1, "b": dense(64), "W2": W2})
    model, _ = shrink(proto, {"x": dense(5, 48)})
    assert shapes(model) == [(56, 48), (32, 56)]
    assert [read_node(n).weight.block for n in model.graph] == [(8, 8), (8, 8)]


def test_features_that_would_break_blocks_apart_stay():
    W1, W2 = blocky((32, 48), (16, 16), 1.0), blocky((32, 32), (16, 16), 1.0, seed=1)
    W1[3] = 0
    text = """agraph (float[N, 48] x) => (float[N, 32] z)
    { a = Gemm<transB = 1>(x, W1) y = Relu(a) z = Gemm<transB = 1>(y, W2) }"""
    model, step = shrink(model_from(text, {"W1": W1, "W2": W2}), {"x": dense(5, 48)})
    assert shapes(model) == [(32, 48), (32, 32)]
    assert "1 of 32 features are dead, but removing them would break blocks apart" in (
        step.refused[0].text
    )


def test_kronecker_layers_lose_whole_block_rows():
    rng = np.random.default_rng(0)
    A1, A2 = rng.standard_normal((8, 6)), rng.standard_normal((5, 8))
    A1[2] = 0
    A2[:, 7] = 0
    W1 = np.kron(A1, rng.standard_normal((4, 8))).astype(np.float32)
    W2 = np.kron(A2, rng.standard_normal((8, 4))).astype(np.float32)
    text = """agraph (float[N, 48] x) => (float[N, 40] z)
    { a = Gemm<transB = 1>(x, W1, b) y = Relu(a) z = Gemm<transB = 1>(y, W2) }"""
    proto = model_from(text, {"W1": W1, "b": dense(32), "W2": W2})
    model, _ = shrink(proto, {"x": dense(5, 48)}, recover=True)
    assert [n.op_type for n in model.graph] == ["KroneckerMatMul"] * 2
    assert shapes(model) == [(24, 48), (40, 24)]


def test_layers_of_several_vectors_keep_whole_vectors():
    model, _ = shrink(mlp(hidden=64, rows=range(20)), X)
    assert shapes(model) == [(48, 12), (10, 48)]
    model, step = shrink(mlp(hidden=64, rows=range(3)), X)
    assert shapes(model) == [(64, 12), (10, 64)]
    assert step.applied == []


def test_one_feature_is_always_kept():
    model, _ = shrink(mlp(rows=range(20)), X)
    assert shapes(model) == [(1, 12), (10, 1)]
    model, _ = shrink(mlp(columns=range(20)), X)
    assert shapes(model) == [(1, 12), (10, 1)]


CNN = """
agraph (float[N, 3, 8, 8] x) => (float[N, 5, {out}, {out}] z)
{{
    a = Conv<pads = [1, 1, 1, 1]>(x, K1, b1)
    r = Relu(a)
    {middle}
    z = Conv<pads = [{pad}, {pad}, {pad}, {pad}]>(y, K2, b2)
}}
"""


def cnn(middle, pad, out, bias):
    K1 = dense(8, 3, 3, 3)
    K1[[1, 4]] = 0
    weights = {"K1": K1, "b1": bias, "K2": dense(5, 8, 3, 3, seed=1), "b2": dense(5)}
    return model_from(CNN.format(middle=middle, pad=pad, out=out), weights)


POOLS = [
    ("y = Identity(r)", 6),
    ("y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)", 2),
    ("y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(r)", 2),
]


@pytest.mark.parametrize(("middle", "out"), POOLS)
def test_channels_of_convolutions(middle, out):
    proto = cnn(middle, 0, out, np.abs(dense(8)))
    model, _ = shrink(proto, {"x": dense(2, 3, 8, 8)}, k=72)
    assert shapes(model) == [(6, 27), (5, 54)]


def test_a_constant_under_zero_padding_is_refused():
    proto = cnn("y = Identity(r)", 1, 8, np.abs(dense(8)))
    model, step = shrink(proto, {"x": dense(2, 3, 8, 8)}, k=72)
    assert shapes(model) == [(8, 27), (5, 72)]
    assert "2 of 8 features are dead, but" in step.refused[0].text
    assert "pads them with zeros" in step.refused[0].text


def test_a_zero_under_zero_padding_goes():
    proto = cnn("y = Identity(r)", 1, 8, -np.abs(dense(8)))
    model, _ = shrink(proto, {"x": dense(2, 3, 8, 8)}, k=72)
    assert shapes(model) == [(6, 27), (5, 54)]


def test_padding_that_is_averaged_in_is_refused():
    pool = "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(r)"
    model, _ = shrink(cnn(pool, 0, 6, np.abs(dense(8))), {"x": dense(2, 3, 8, 8)}, k=72)
    assert shapes(model) == [(8, 27), (5, 72)]
    model, _ = shrink(cnn(pool, 0, 6, -np.abs(dense(8))), {"x": dense(2, 3, 8, 8)}, k=72)
    assert shapes(model) == [(6, 27), (5, 54)]


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ("r = Reshape(a, heads) t = Softmax(r) y = Reshape(t, flat)", "Reshape reads it"),
        ("y = Softmax(a)", "Softmax reads it"),
        ("y = LayerNormalization(a, g)", "LayerNormalization reads it"),
    ],
)
def test_what_sees_all_features_stops_it(middle, reason):
    extra = {
        "heads": np.array([-1, 2, 10]),
        "flat": np.array([-1, 20]),
        "g": dense(20),
    }
    model, step = shrink(mlp(middle, rows=(1, 2), **extra), X)
    assert shapes(model) == [(20, 12), (10, 20)]
    assert step.refused[0].text == f"2 of 20 features are dead, but {reason}"


def test_the_borders_of_the_graph_stay():
    text = """agraph (float[N, 12] x) => (float[N, 20] y, float[N, 10] z)
    { y = MatMul(x, W1) z = MatMul(y, W2) }"""
    weights = {
        "W1": without(dense(12, 20), rows=(0,), columns=(1,)),
        "W2": dense(20, 10),
    }
    model, step = shrink(model_from(text, weights), X)
    assert shapes(model) == [(20, 12), (10, 20)]
    assert {note.text for note in step.refused} == {
        "1 of 20 features are dead, but it is an output of the graph",
        "1 of 12 features are dead, but it comes from outside the layers",
    }


def test_a_residual_from_outside_the_layers_stops_it():
    text = """agraph (float[N, 12] x, float[N, 20] r) => (float[N, 10] z)
    { a = MatMul(x, W1) y = Add(a, r) z = MatMul(y, W2) }"""
    weights = {"W1": without(dense(12, 20), columns=(1,)), "W2": dense(20, 10)}
    proto = model_from(text, weights)
    for fuse in (True, False):
        model, step = shrink(proto, X | {"r": dense(5, 20)}, fuse=fuse)
        assert shapes(model) == [(20, 12), (10, 20)]
        assert "comes from outside the layers" in step.refused[0].text


def test_a_bias_that_is_computed_cannot_take_constants():
    text = """agraph (float[N, 12] x, float[10] b) => (float[N, 10] z)
    { a = Gemm<transB = 1>(x, W1, b1) z = Gemm(a, W2, b) }"""
    weights = {"W1": without(dense(20, 12), rows=(1,)), "b1": dense(20), "W2": dense(20, 10)}
    model, step = shrink(model_from(text, weights), X | {"b": dense(10)})
    assert shapes(model) == [(20, 12), (10, 20)]
    assert "is not constant" in step.refused[0].text


def test_live_layers_stay_silent():
    model, step = shrink(mlp(), X)
    assert shapes(model) == [(20, 12), (10, 20)]
    assert (step.applied, step.refused) == ([], [])


def test_a_layer_of_zeros_hinders_nobody():
    W1 = blocky((64, 48), (16, 16), 0.5)
    proto = model_from(
        """agraph (float[N, 48] x) => (float[N, 10] z)
        { a = Gemm<transB = 1>(x, W1) y = Relu(a) z = Gemm<transB = 1>(y, W2, b) }""",
        {"W1": W1, "W2": np.zeros((10, 64), np.float32), "b": dense(10)},
    )
    model, _ = shrink(proto, {"x": dense(5, 48)})
    assert shapes(model)[-1] == (10, 1)


def test_a_computed_bias_stops_its_own_layer():
    text = """agraph (float[N, 12] x, float[20] b) => (float[N, 10] z)
    { a = Gemm(x, W1, b) z = MatMul(a, W2) }"""
    weights = {"W1": dense(12, 20), "W2": without(dense(20, 10), rows=(3,))}
    model, step = shrink(model_from(text, weights), X | {"b": dense(20)})
    assert shapes(model) == [(20, 12), (10, 20)]
    assert "1 of 20 features are dead, but the bias of" in step.refused[0].text
    assert "is computed" in step.refused[0].text


def flattened(flatten, pool="a = Identity(c)", dead=(1, 5), unused=()):
    """Convolution, maybe pooling, flattening, linear layer; 4x4 images leave 16 or 4 a channel."""
    area = 4 if "Pool" in pool else 16
    fc = dense(5, 8 * area, seed=3)
    fc.reshape(5, 8, area)[:, list(unused)] = 0
    weights = {
        "K": without(dense(8, 27), rows=dead).reshape(8, 3, 3, 3),
        "b": dense(8, seed=2),
        "W": fc,
        "d": dense(5, seed=4),
        "flat": np.array([-1, 8 * area]),
        "zero": np.array([0, -1]),
    }
    text = f"""agraph (float[N, 3, 4, 4] x) => (float[N, 5] z) {{
        c0 = Conv<pads = [1, 1, 1, 1]>(x, K, b)
        c = Relu(c0)
        {pool}
        {flatten}
        z = Gemm<transB = 1>(f, W, d)
    }}"""
    used = {name: array for name, array in weights.items() if f"{name}" in text}
    return model_from(text, used)


POOL = "a = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)"


@pytest.mark.parametrize("pool", ["a = Identity(c)", POOL])
@pytest.mark.parametrize("flatten", ["Flatten(a)", "Reshape(a, flat)", "Reshape(a, zero)"])
def test_channels_go_through_flattening(flatten, pool):
    """Dead channels with a constant and unused ones; the linear layer loses h·w columns of each."""
    area = 4 if "Pool" in pool else 16
    proto = flattened(f"f = {flatten}", pool, dead=(1, 5), unused=(2,))
    model, step = shrink(proto, {"x": dense(3, 3, 4, 4, seed=9)})
    assert shapes(model) == [(5, 27), (5, 5 * area)]
    assert "8 features become 5" in step.applied[0].text


def test_single_columns_after_flattening_stay():
    """A pixel that nobody reads is not a channel."""
    proto = flattened("f = Flatten(a)", dead=())
    for tensor in proto.graph.initializer:
        if tensor.name == "W":
            array = numpy_helper.to_array(tensor).copy()
            array[:, [0, 17]] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, "W"))
    model, _ = shrink(proto, {"x": dense(2, 3, 4, 4, seed=9)})
    assert shapes(model) == [(8, 27), (5, 128)]


HEADS, D = 4, 6


def attention(shape="split", dead_value=(), unused=(), **rows):
    """Self-attention as exporters write it: [b, s, h d] -> [b, s, h, d] -> [b, h, s, d]."""
    size = HEADS * D
    heads = {
        name: without(dense(size, size, seed=seed), rows=rows.get(name, ()))
        for seed, name in enumerate(("Wq", "Wk", "Wv"), 2)
    }
    o = dense(size, size, seed=5)
    value_bias = dense(size, seed=8)
    for head in dead_value:
        heads["Wv"][head * D : (head + 1) * D] = 0
        value_bias[head * D : (head + 1) * D] = 0
    for head in unused:
        o[:, head * D : (head + 1) * D] = 0
    weights = {
        **{name: np.ascontiguousarray(w.T) for name, w in heads.items()},
        "Wo": np.ascontiguousarray(o.T),
        "bv": value_bias,
        "scale": np.float32(D**-0.5),
        "split": np.array([0, 0, HEADS, D] if shape == "split" else [2, -1, HEADS, D]),
        "merge": np.array([0, 0, -1] if shape == "split" else [2, -1, size]),
        "m": np.triu(np.full((5, 5), -1e9, np.float32), 1),
    }
    text = f"""agraph (float[2, 5, {size}] x) => (float[2, 5, {size}] z) {{
        q0 = MatMul(x, Wq)  q1 = Reshape(q0, split)  q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k0 = MatMul(x, Wk)  k1 = Reshape(k0, split)  k = Transpose<perm = [0, 2, 3, 1]>(k1)
        v0 = MatMul(x, Wv)  v2 = Add(v0, bv)  v1 = Reshape(v2, split)
        v = Transpose<perm = [0, 2, 1, 3]>(v1)
        s0 = MatMul(q, k)  s1 = Mul(s0, scale)  s = Add(s1, m)  p = Softmax<axis = -1>(s)
        o0 = MatMul(p, v)  o1 = Transpose<perm = [0, 2, 1, 3]>(o0)  o2 = Reshape(o1, merge)
        z = MatMul(o2, Wo)
    }}"""
    if shape == "computed":
        text = text.replace(f"float[2, 5, {size}]", f"float[B, S, {size}]").replace(
            "Add(s1, m)", "Identity(s1)"
        )
        text = text.replace(
            "{",
            """{
            batch = Shape<end = 1>(x)  length = Shape<start = 1, end = 2>(x)
            split = Concat<axis = 0>(batch, length, hd)
            merge = Concat<axis = 0>(batch, length, all)""",
            1,
        )
        weights |= {"hd": np.array([HEADS, D]), "all": np.array([size])}
        weights = {name: w for name, w in weights.items() if name not in ("split", "merge", "m")}
    return model_from(text, weights)


@pytest.mark.parametrize("shape", ["split", "numbers", "computed"])
@pytest.mark.parametrize(("dead", "unused"), [((2,), ()), ((), (0, 3)), ((1,), (2,))])
def test_whole_heads_go(shape, dead, unused):
    """A head whose values are zero, or whose outputs nobody reads, leaves all four layers."""
    proto = attention(shape, dead_value=dead, unused=unused)
    model, step = shrink(proto, {"x": dense(2, 5, HEADS * D, seed=9)})
    kept, size = (HEADS - len(dead) - len(unused)) * D, HEADS * D
    assert shapes(model) == [(kept, size), (kept, size), (kept, size), (size, kept)]
    assert f"{HEADS} features become {kept // D}" in step.applied[0].text


def test_a_head_with_constant_values_stays():
    """Softmax sums to one only nearly, so that a constant is not one any more."""
    proto = attention(Wv=range(D, 2 * D))
    model, _ = shrink(proto, {"x": dense(2, 5, HEADS * D, seed=9)})
    assert shapes(model) == [(HEADS * D, HEADS * D)] * 4


def test_a_part_of_a_head_stays():
    proto = attention(Wv=range(D + 1, 2 * D + 3))
    model, step = shrink(proto, {"x": dense(2, 5, HEADS * D, seed=9)})
    assert shapes(model) == [(HEADS * D, HEADS * D)] * 4
    assert ["Reshape reads it" in note.text for note in step.refused] == [True], step.refused

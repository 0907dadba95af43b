import numpy as np
import pytest
import torch

from bscompile.dialect import is_dialect, read_node
from bscompile.importer import load_model
from bscompile.passes.absorb_permutation import AbsorbPermutation
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.passes.recover_factors import RecoverFactors
from tests.passes.factorized import export
from tests.passes.helpers import blocky, check_equal, dense, model_from, op_types

ORDER = np.random.default_rng(5).permutation(32)


def absorb(proto, feeds, recover=False):
    model = load_model(proto)
    step = AbsorbPermutation()
    earlier = [FoldConstants(), RecogniseLinear()] + [RecoverFactors()] * recover
    for each in (*earlier, step):
        each(model)
    check_equal(proto, model, feeds)
    return model, step


def kinds(model):
    return [read_node(node).form for node in model.graph if is_dialect(node)]


def scrambled(weight, axis):
    """A weight whose blocks show only once its channels are put in ORDER again."""
    return np.take(weight, np.argsort(ORDER), axis=axis)


READ = """agraph (float[N, 32] x) => (float[N, 16] z)
{{ y = Gather<axis = {axis}>(x, p) {middle} z = Gemm<transB = 1>({last}, W, b) }}"""


@pytest.mark.parametrize("axis", [1, -1])
def test_blocks_that_show_only_after_absorbing(axis):
    # W'[:, p] = W has the blocks.
    weight = blocky((16, 32), (4, 4))[:, ORDER]
    proto = model_from(
        READ.format(axis=axis, middle="", last="y"), {"p": ORDER, "W": weight, "b": dense(16)}
    )
    model, step = absorb(proto, {"x": dense(5, 32)})
    assert op_types(model) == ["BlockSparseMatMul"]
    assert read_node(model.graph[0]).weight.block == (4, 4)
    assert "the order of 32 channels went into" in step.applied[0].text


def test_negative_indices_count_from_the_end():
    proto = model_from(
        READ.format(axis=1, middle="", last="y"),
        {"p": ORDER - 32, "W": dense(16, 32), "b": dense(16)},
    )
    model, _ = absorb(proto, {"x": dense(5, 32)})
    assert op_types(model) == ["DenseMatMul"]


def test_through_elementwise_operators_and_their_constants():
    middle = "m = Mul(y, scale) a = Add(m, shift) r = Relu(a)"
    weights = {"p": ORDER, "W": dense(16, 32), "b": dense(16)}
    weights |= {"scale": dense(32, seed=2), "shift": dense(1, 32, seed=3)}
    proto = model_from(READ.format(axis=1, middle=middle, last="r"), weights)
    model, _ = absorb(proto, {"x": dense(5, 32)})
    assert op_types(model) == ["Mul", "Add", "Relu", "DenseMatMul"]


def test_blocks_that_absorbing_would_break_keep_the_gather():
    weights = {"p": ORDER, "W": blocky((16, 32), (4, 4)), "b": dense(16)}
    proto = model_from(READ.format(axis=1, middle="", last="y"), weights)
    model, step = absorb(proto, {"x": dense(5, 32)})
    assert op_types(model) == ["Gather", "BlockSparseMatMul"]
    assert "absorbing it would break blocks apart" in step.refused[0].text


PAIR = """agraph (float[N, 24] x) => (float[N, 16] z)
{ h = Gemm<transB = 1>(x, W1, b1) r = Relu(h) y = Gather<axis = 1>(r, p)
  z = Gemm<transB = 1>(y, W2, b2) }"""


def pair(W1, W2):
    return model_from(PAIR, {"p": ORDER, "W1": W1, "W2": W2, "b1": dense(32), "b2": dense(16)})


def test_the_side_is_chosen_that_keeps_more_blocks():
    # The second layer has its blocks behind the Gather: the order goes into the first.
    model, _ = absorb(pair(dense(32, 24), blocky((16, 32), (4, 4))), {"x": dense(5, 24)})
    assert op_types(model) == ["DenseMatMul", "Relu", "BlockSparseMatMul"]
    # The first layer has its blocks before the Gather: the order goes into the second.
    model, _ = absorb(pair(blocky((32, 24), (4, 4)), dense(16, 32)), {"x": dense(5, 24)})
    assert op_types(model) == ["BlockSparseMatMul", "Relu", "DenseMatMul"]
    # Both show their blocks after reordering the rows of the first.
    first = scrambled(blocky((32, 24), (4, 4)), axis=0)
    model, _ = absorb(pair(first, blocky((16, 32), (4, 4))), {"x": dense(5, 24)})
    assert kinds(model) == ["block_sparse", "block_sparse"]
    assert "Gather" not in op_types(model)


def test_an_output_keeps_its_name():
    text = """agraph (float[N, 24] x) => (float[N, 32] z)
    { h = Gemm<transB = 1>(x, W, b) z = Gather<axis = 1>(h, p) }"""
    weights = {"p": ORDER, "W": scrambled(blocky((32, 24), (4, 4)), 0), "b": dense(32)}
    model, _ = absorb(model_from(text, weights), {"x": dense(5, 24)})
    assert op_types(model) == ["BlockSparseMatMul"]
    assert [value.name for value in model.graph.outputs] == ["z"]


def test_channels_of_a_convolution():
    text = """agraph (float[N, 8, 6, 6] x) => (float[N, 4, 4, 4] z)
    { y = Gather<axis = 1>(x, p) r = Relu(y) z = Conv(r, K, b) }"""
    order = np.random.default_rng(1).permutation(8)
    weights = {"p": order, "K": dense(4, 8, 3, 3), "b": dense(4)}
    model, _ = absorb(model_from(text, weights), {"x": dense(2, 8, 6, 6)})
    assert op_types(model) == ["Relu", "DenseConv"]


@pytest.mark.parametrize("spelling", ["index", "select"])
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("shape", [(4, 32), (2, 5, 32)])
def test_as_torch_writes_it(spelling, dynamo, shape):
    class Shuffled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(32, 16)
            self.register_buffer("order", torch.from_numpy(ORDER))

        def forward(self, x):
            x = x[..., self.order] if spelling == "index" else x.index_select(-1, self.order)
            return self.layer(torch.tanh(x))

    proto = export(Shuffled(), shape, (0,), dynamo)
    model, _ = absorb(proto, {"x": dense(*shape)})
    left = set(op_types(model))
    assert "Tanh" in left
    assert not left & {"Gather", "GatherND", "Transpose"}


def test_indices_that_repeat_are_refused():
    repeated = ORDER.copy()
    repeated[0] = repeated[1]
    proto = model_from(
        READ.format(axis=1, middle="", last="y"),
        {"p": repeated, "W": dense(16, 32), "b": dense(16)},
    )
    model, step = absorb(proto, {"x": dense(5, 32)})
    assert op_types(model)[0] == "Gather"
    assert "no permutation" in step.refused[0].text


def test_other_readers_on_both_sides_are_refused():
    proto = model_from(
        READ.format(axis=1, middle="s = Softmax(y)", last="s"),
        {"p": ORDER, "W": dense(16, 32), "b": dense(16)},
    )
    model, step = absorb(proto, {"x": dense(5, 32)})
    assert op_types(model)[0] == "Gather"
    assert step.refused[0].text == (
        "reading side: Softmax reads it; making side: it comes from outside the layers"
    )


def test_a_sum_of_both_orders_is_refused():
    text = """agraph (float[N, 24] x) => (float[N, 16] z)
    { h = MatMul(x, W1) y = Gather<axis = 1>(h, p) s = Add(h, y) z = MatMul(s, W2) }"""
    weights = {"p": ORDER, "W1": dense(24, 32), "W2": dense(32, 16)}
    model, step = absorb(model_from(text, weights), {"x": dense(5, 24)})
    assert "Gather" in op_types(model)
    assert "both orders meet in one sum" in step.refused[0].text


def test_factors_are_not_reordered():
    rng = np.random.default_rng(0)
    weight = np.kron(rng.standard_normal((4, 8)), rng.standard_normal((4, 4))).astype(np.float32)
    proto = model_from(
        READ.format(axis=1, middle="", last="y"), {"p": ORDER, "W": weight, "b": dense(16)}
    )
    model, step = absorb(proto, {"x": dense(5, 32)}, recover=True)
    assert op_types(model) == ["Gather", "KroneckerMatMul"]
    assert "is factorized" in step.refused[0].text


def test_a_gather_of_rows_is_none_of_ours():
    text = """agraph (float[32, 24] x) => (float[32, 16] z)
    { y = Gather<axis = 0>(x, p) z = MatMul(y, W) }"""
    model, step = absorb(model_from(text, {"p": ORDER, "W": dense(24, 16)}), {"x": dense(32, 24)})
    assert op_types(model) == ["Gather", "DenseMatMul"]
    assert step.refused == []

"""Convolutions in groups compute the same without them."""

import numpy as np
import pytest

from bscompile.importer import load_model
from bscompile.passes import merge_groups
from bscompile.passes.merge_groups import MergeGroups
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.passes.restate_convolutions import RestateConvolutions
from tests.passes.helpers import check_equal, dense, model_from, op_types


def merged(text, weights, feeds):
    proto = model_from(text, weights)
    graph = load_model(proto)
    step = MergeGroups()
    step(graph)
    check_equal(proto, graph, feeds)
    return graph, step


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("bias", ["constant", "computed", "none"])
@pytest.mark.parametrize(("limit", "parts"), [(1 << 20, 1), (1200, 2), (1, 4)])
def test_groups_become_blocks_on_the_diagonal(op, bias, limit, parts, monkeypatch):
    monkeypatch.setattr(merge_groups, "_MOST_BYTES", limit)
    shape = (12, 2, 3, 2) if op == "Conv" else (8, 3, 3, 2)
    inputs = "float[n, 8, 7, 5] x" + (", float[12] b" if bias == "computed" else "")
    text = f"""g ({inputs}) => (float[a, c, d, e] y) {{
        y = {op}<group: int = 4, strides: ints = [2, 1]>(x, w{"" if bias == "none" else ", b"})
    }}"""
    weights = {"w": dense(*shape)} | ({"b": dense(12)} if bias == "constant" else {})
    feeds = {"x": dense(2, 8, 7, 5)} | ({"b": dense(12)} if bias == "computed" else {})
    graph, step = merged(text, weights, feeds)
    assert op_types(graph).count(op) == parts
    assert ("Concat" in op_types(graph)) == (parts > 1)
    assert len(step.applied) == 1


def test_one_axis_and_as_many_outputs_as_channels_twice():
    text = """g (float[n, 6, 11] x) => (float[a, c, d] y) {
        y = Conv<group: int = 6, pads: ints = [1, 1]>(x, w)
    }"""
    graph, _ = merged(text, {"w": dense(12, 1, 3)}, {"x": dense(2, 6, 11)})
    assert op_types(graph) == ["Conv"]


def test_the_zeros_between_groups_are_blocks():
    text = "g (float[2, 64, 9, 9] x) => (float[a, c, d, e] y) { y = Conv<group: int = 4>(x, w) }"
    graph, _ = merged(text, {"w": dense(64, 16, 3, 3)}, {"x": dense(2, 64, 9, 9)})
    RecogniseLinear()(graph)
    assert op_types(graph) == ["BlockSparseConv"]


def test_transposed_ones_are_restated_then():
    text = """g (float[2, 4, 6, 6] x) => (float[a, c, d, e] y) {
        y = ConvTranspose<group: int = 4, strides: ints = [2, 2]>(x, w)
    }"""
    graph, _ = merged(text, {"w": dense(4, 1, 4, 4)}, {"x": dense(2, 4, 6, 6)})
    RestateConvolutions()(graph)
    assert "ConvTranspose" not in op_types(graph)


@pytest.mark.parametrize(
    ("shape", "signature", "operands"),
    [
        ((8, 1, 3, 3), "float[2, 8, 5, 5] x", "x, w"),  # depthwise: targets have code for it
        (None, "float[2, 8, 5, 5] x, float[8, 2, 3, 3] w", "x, w"),
    ],
)
def test_what_stays(shape, signature, operands):
    groups = 8 if shape else 4
    text = f"""g ({signature}) => (float[a, c, d, e] y) {{
        y = Conv<group: int = {groups}>({operands})
    }}"""
    feeds = {"x": dense(2, 8, 5, 5)} | ({} if shape else {"w": dense(8, 2, 3, 3)})
    graph, step = merged(text, {"w": dense(*shape)} if shape else {}, feeds)
    assert op_types(graph) == ["Conv"]
    assert not step.applied
    assert np.all([node.attributes.get_int("group", 1) == groups for node in graph.graph])

"""Group normalisation without the reshapes that exporters put around it."""

import numpy as np
import pytest

from bscompile.passes.restate_normalisation import RestateNormalisation
from tests.passes.helpers import dense, model_from, op_types, rewritten

TEXT = """g (float[{batch}, 12, 7, 5] x) => (float[{batch}, 12, 7, 5] y) {{
    s = Neg(x)
    r = Reshape(s, merged)
    n = InstanceNormalization<epsilon: float = 1e-3>(r, scale, shift)
    y = Reshape(n, {back})
}}"""


def restated(text, groups, merged, opset=20, back=(0, 12, 7, 5)):
    weights = {
        "merged": np.array(merged, np.int64),
        "back": np.array(back, np.int64),
        "scale": dense(groups),
        "shift": dense(groups, seed=2),
    }
    proto = model_from(text, weights, opset)
    step = RestateNormalisation()
    feeds = {"x": 3 * dense(2, 12, 7, 5) + 2}
    return rewritten(proto, step, feeds=feeds), step


@pytest.mark.parametrize("opset", [20, 21])
@pytest.mark.parametrize("batch", ["2", "n"])
def test_groups_are_told_in_one_operator(batch, opset):
    graph, step = restated(TEXT.format(batch=batch, back="back"), 4, [0, 4, -1], opset)
    assert op_types(graph) == ["Neg", "GroupNormalization"]
    assert graph.opset_imports[""] == 21
    assert len(step.applied) == 1


def test_a_group_for_each_channel_is_an_instance_normalisation():
    graph, _ = restated(TEXT.format(batch="2", back="back"), 12, [2, 12, 35])
    assert op_types(graph) == ["Neg", "InstanceNormalization"]
    assert graph.opset_imports[""] == 20


def test_one_axis_needs_no_way_back():
    text = """g (float[2, 12, 35] x) => (float[2, 12, 35] y) {
        s = Neg(x)
        r = Reshape(s, merged)
        n = InstanceNormalization(r, scale, shift)
        y = Relu(n)
    }"""
    weights = {"merged": np.array([0, 12, -1]), "scale": dense(12), "shift": dense(12, seed=2)}
    feeds = {"x": dense(2, 12, 35)}
    graph = rewritten(model_from(text, weights), RestateNormalisation(), feeds=feeds)
    assert op_types(graph) == ["Neg", "InstanceNormalization", "Relu"]


READ_TWICE = """g (float[2, 12, 7, 5] x) => (float[2, 12, 7, 5] y, float[a, b, c] q) {
    r = Reshape(x, merged)
    n = InstanceNormalization(r, scale, shift)
    y = Reshape(n, back)
    q = Neg(r)
}"""
OTHER_IMAGES = """g (float[2, 12, 7, 5] x) => (float[a, b, c] y) {
    r = Reshape(x, merged)
    n = InstanceNormalization(r, scale, shift)
    y = Neg(n)
}"""
TURNED = """g (float[2, 12, 7, 5] x) => (float[2, 12, 5, 7] y) {
    r = Reshape(x, merged)
    n = InstanceNormalization(r, scale, shift)
    y = Reshape(n, back)
}"""


@pytest.mark.parametrize(
    ("text", "groups", "merged", "back"),
    [
        (READ_TWICE, 4, [0, 4, -1], [0, 12, 7, 5]),
        (OTHER_IMAGES, 8, [3, 8, -1], [0]),
        (TURNED, 4, [0, 4, -1], [2, 12, 5, 7]),
    ],
)
def test_what_stays(text, groups, merged, back):
    graph, step = restated(text, groups, merged, back=back)
    assert "InstanceNormalization" in op_types(graph)
    assert not step.applied

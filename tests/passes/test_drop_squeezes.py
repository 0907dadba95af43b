"""Axes of length one that go and come back are kept."""

import pytest

from bscompile.importer import load_model
from bscompile.passes.drop_squeezes import DropSqueezes
from bscompile.passes.restate_convolutions import RestateConvolutions
from tests.passes.helpers import check_equal, dense, model_from, op_types


def dropped(text, weights, feeds, *before):
    proto = model_from(text, weights)
    graph = load_model(proto)
    step = DropSqueezes()
    for one in (*before, step):
        one(graph)
    check_equal(proto, graph, feeds)
    return op_types(graph), step


@pytest.mark.parametrize("between", ["", "Gelu", "Relu"])
@pytest.mark.parametrize("batch", ["2", "n"])
def test_convolutions_of_one_axis_follow_each_other(between, batch):
    middle = f"h2 = {between}(h)" if between else "h2 = Identity(h)"
    text = f"""g (float[{batch}, 3, 17] x) => (float[a, c, d] y) {{
        h = Conv(x, v)
        {middle}
        y = Conv<strides: ints = [2]>(h2, w)
    }}"""
    weights = {"v": dense(5, 3, 3), "w": dense(4, 5, 2)}
    types, step = dropped(text, weights, {"x": dense(2, 3, 17)}, RestateConvolutions())
    assert types == ["Unsqueeze", "Conv", between or "Identity", "Conv", "Squeeze"]
    assert len(step.applied) == 1


def test_without_anything_between_nothing_is_left():
    text = """g (float[2, 1, 3] x, int64[1] c) => (float[2, 1, 3] y) {
        axis = Constant<value_ints = [1]>()
        front = Constant<value_ints = [-2]>()
        s = Relu(x)
        h = Squeeze(s, axis)
        u = Unsqueeze(h, front)
        y = Neg(u)
    }"""
    types, step = dropped(text.replace(", int64[1] c", ""), {}, {"x": dense(2, 1, 3)})
    assert len(step.applied) == 1
    assert not {"Squeeze", "Unsqueeze"} & set(types)


@pytest.mark.parametrize("operand", ["two", "by_channel", "row"])
def test_normalisation_and_constants_between(operand):
    text = f"""g (float[2, 3, 17] x) => (float[a, c, d] y) {{
        two = Constant<value_float: float = 2.0>()
        h = Conv(x, v)
        n = InstanceNormalization(h, scale, shift)
        m = Mul({operand}, n)
        s = Sub(m, by_channel)
        y = Conv(s, w)
    }}"""
    weights = {"v": dense(5, 3, 3), "w": dense(4, 5, 2), "scale": dense(5), "shift": dense(5)}
    weights |= {"by_channel": dense(5, 1), "row": dense(15)}
    types, step = dropped(text, weights, {"x": dense(2, 3, 17)}, RestateConvolutions())
    norm = ["InstanceNormalization", "Mul", "Sub"]
    assert [t for t in types if t != "Constant"] == ["Unsqueeze", "Conv", *norm, "Conv", "Squeeze"]
    assert len(step.applied) == 1


@pytest.mark.parametrize(
    "body",
    [
        "h = Squeeze(x, one)  u = Unsqueeze(h, two)  y = Neg(u)",  # another axis
        "h = Squeeze(x, one)  s = Softmax(h)  u = Unsqueeze(s, one)  y = Neg(u)",
        "h = Squeeze(x, one)  u = Unsqueeze(h, one)  v = Unsqueeze(h, one)  y = Add(u, v)",
    ],
)
def test_what_stays(body):
    text = f"""g (float[2, 1, 3] x) => (float[a, b, c] y) {{
        one = Constant<value_ints = [1]>()
        two = Constant<value_ints = [2]>()
        {body}
    }}"""
    types, step = dropped(text, {}, {"x": dense(2, 1, 3)})
    assert "Squeeze" in types
    assert not step.applied


@pytest.mark.parametrize(
    ("axis", "middle"),
    [
        (0, "InstanceNormalization(h, one, one)"),  # another axis would be the batch
        (2, "Add(h, tall)"),  # its result has more axes
    ],
)
def test_what_is_between_may_forbid_it(axis, middle):
    text = f"""g (float[1, 4, 1, 3] x) => (float[a, b, c, d] y) {{
        axis = Constant<value_ints = [{axis}]>()
        h = Squeeze(x, axis)
        m = {middle}
        u = Unsqueeze(m, axis)
        y = Neg(u)
    }}"""
    if "tall" in middle:
        text = text.replace("float[a, b, c, d] y", "float[a, b, c, d, e] y")
    weights = {"one": dense(1), "tall": dense(5, 1, 4, 3)}
    types, step = dropped(text, weights, {"x": dense(1, 4, 1, 3)})
    assert "Squeeze" in types
    assert not step.applied

"""Reductions of nothing, of NaN and of booleans; lengths and axes that must be known."""

import numpy as np
import onnx_ir as ir
import pytest

import bscompile
from bscompile.errors import ModelError
from bscompile.targets.lowering import lower
from tests.targets.lowering_helpers import Compiled, assert_equal_to_onnxruntime, context, model


def run(proto, feeds, tmp_path):
    return bscompile.load(bscompile.build(proto).save(tmp_path / "model.bsc")).run(feeds)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_an_extreme_with_nan_is_nan_wherever_it_stands(op):
    proto = model(
        f"g (float[n,4] x) => (float[n] y) <int64[1] a = {{1}}> {{ y = {op}<keepdims = 0>(x, a) }}"
    )
    x = np.arange(24, dtype=np.float32).reshape(6, 4) - 12
    x[[0, 1, 2, 4], [0, 3, 1, 2]] = np.nan
    x[5] = [np.inf, -np.inf, 0, 1]
    extreme = np.max if op == "ReduceMax" else np.min
    (got,) = Compiled(proto)({"x": x})
    np.testing.assert_array_equal(got, extreme(x, axis=1))


def test_reductions_of_booleans_and_integers():
    proto = model(
        """g (bool[n,3] b, int64[n,3] i) => (bool[1,3] any, bool[n,1] all, int64 m)
        <int64[1] rows = {0}, int64[1] columns = {-1}> {
        any = ReduceMax(b, rows)  all = ReduceMin(b, columns)  m = ReduceMax<keepdims = 0>(i) }"""
    )
    b = np.array([[True, False, False], [True, True, False]])
    assert_equal_to_onnxruntime(proto, {"b": b, "i": np.arange(6).reshape(2, 3)})


def test_an_input_of_no_axes_is_none_at_all(tmp_path):
    proto = model(
        """g (float[2,3] x, int64[0] a) => (float[1,1] y, float[2,3] z) {
        y = ReduceSum(x, a)  z = ReduceSum<noop_with_empty_axes = 1>(x, a) }"""
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = run(proto, {"x": x, "a": np.empty(0, np.int64)}, tmp_path)
    np.testing.assert_array_equal(got["y"], [[15]])
    np.testing.assert_array_equal(got["z"], x)


OF_NOTHING = {
    "ReduceSum": 0, "ReduceProd": 1, "ReduceL1": 0, "ReduceL2": 0, "ReduceSumSquare": 0,
    "ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceLogSum": -np.inf, "ReduceLogSumExp": -np.inf,
    "ReduceMean": np.nan,
}  # fmt: skip


def test_reductions_of_nothing_are_neutral(tmp_path):
    outputs = ", ".join(f"float[2,1,4] {op}_y" for op in OF_NOTHING)
    nodes = " ".join(f"{op}_y = {op}(x, a)" for op in OF_NOTHING)
    proto = model(f"g (float[2,0,4] x) => ({outputs}) <int64[1] a = {{1}}> {{ {nodes} }}")
    got = run(proto, {"x": np.empty((2, 0, 4), np.float32)}, tmp_path)
    for op, want in OF_NOTHING.items():
        np.testing.assert_array_equal(got[f"{op}_y"], np.full((2, 1, 4), want, np.float32))


def test_what_holds_nothing_is_not_computed(tmp_path):
    proto = model(
        """g (float[4,6] x) => (float[4,0] nothing, float[4,6] y)
        <int64[1] six = {6}, int64[1] ten = {10}, int64[1] one = {1}> {
        nothing = Slice(x, six, ten, one)  y = Concat<axis = 1>(x, nothing) }"""
    )
    x = np.ones((4, 6), np.float32)
    got = run(proto, {"x": x}, tmp_path)
    assert got["nothing"].shape == (4, 0)
    np.testing.assert_array_equal(got["y"], x)


@pytest.mark.parametrize("depth", [1, 5])
def test_one_hot_at_every_axis(depth):
    proto = model(
        f"""g (int64[n,2] i, float[2] v) => (float[n,2,{depth}] y, float[{depth},n,2] z)
        <int64 depth = {{{depth}}}> {{
        y = OneHot(i, depth, v)  z = OneHot<axis = 0>(i, depth, v) }}"""
    )
    feeds = {"i": np.array([[0, 4], [-1, 2], [1, -5]]), "v": np.float32([0.5, 3])}
    assert_equal_to_onnxruntime(proto, feeds)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(float[4] x, int64[1] a) => (float[1] y) { y = ReduceSum(x, a) }", "axes"),
        ("(float[4] x, int64[1] a) => (float[b] y, int64[b] i) { y, i = TopK(x, a) }", "K"),
        ("(float[4] x, int64[2] a) => (float[b] y) { y = Pad(x, a) }", "pads"),
        ("(float[4] x, int64[2] a) => (float[b] y, float[c] z) { y, z = Split(x, a) }", "split"),
    ],
)
def test_a_parameter_from_data_is_refused_by_its_name(text, what):
    proto = model(f"g {text}")
    with pytest.raises(ModelError, match=f"its input {what} is computed from data"):
        lower(ir.from_proto(proto), context())

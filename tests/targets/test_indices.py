"""Indices that come from the caller: what onnxruntime gives, and never foreign memory."""

import numpy as np
import pytest

import bscompile
from bscompile.errors import ModelError, UsageError
from tests.targets.lowering_helpers import Compiled, assert_equal_to_onnxruntime, model

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
FAR = 10**12


def test_gather_elements_counts_from_the_end_and_clamps():
    proto = model("""g (float[n, 4] x, int64[k, 4] i) => (float[k, 4] y) {
        y = GatherElements<axis = 0>(x, i) }""")
    good = np.array([[0, -1, 2, -3], [1, 1, 0, -2]])
    compiled = assert_equal_to_onnxruntime(proto, {"x": X, "i": good})
    (got,) = compiled({"x": X, "i": np.array([[3, -4, FAR, -FAR]])})
    np.testing.assert_array_equal(got, [[X[2, 0], X[0, 1], X[2, 2], X[0, 3]]])


def test_gather_elements_stays_inside_data_that_is_shorter_than_the_indices():
    proto = model("""g (float[n, m] x, int64[k, l] i) => (float[k, l] y) {
        y = GatherElements<axis = 0>(x, i) }""")
    compiled = assert_equal_to_onnxruntime(proto, {"x": X, "i": np.array([[2, 1]])})
    (got,) = compiled({"x": X, "i": np.full((1, 6), 1)})
    np.testing.assert_array_equal(got, [[*X[1], X[1, 3], X[1, 3]]])


@pytest.mark.parametrize("batch", [0, 1])
def test_gather_nd_counts_from_the_end_and_clamps(batch):
    shape = "k, 2" if batch == 0 else "n, k, 1"
    result = "k, 2" if batch == 0 else "n, k, 2"
    proto = model(f"""g (float[n, 4, 2] x, int64[{shape}] i) => (float[{result}] y) {{
        y = GatherND<batch_dims = {batch}>(x, i) }}""")
    x = np.random.default_rng(1).standard_normal((3, 4, 2)).astype(np.float32)
    good = [[0, -1], [-3, 2]] if batch == 0 else [[[1], [-1]], [[0], [3]], [[-4], [2]]]
    compiled = assert_equal_to_onnxruntime(proto, {"x": x, "i": np.array(good)})
    bad = [[7, -9], [-9, 7]] if batch == 0 else [[[9]], [[-9]], [[4]]]
    (got,) = compiled({"x": x, "i": np.array(bad)})
    want = [x[2, 0], x[0, 3]] if batch == 0 else [[x[0, 3]], [x[1, 0]], [x[2, 3]]]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_scatter_elements_counts_from_the_end_and_clamps(reduction):
    proto = model(f"""g (float[n, 4] x, int64[k, 4] i, float[k, 4] u) => (float[n, 4] y) {{
        y = ScatterElements<axis = 0, reduction = "{reduction}">(x, i, u) }}""")
    updates = np.ones((1, 4), np.float32)
    feeds = {"x": X, "i": np.array([[0, -1, 2, -3]]), "u": updates}
    compiled = assert_equal_to_onnxruntime(proto, feeds)
    (near,) = compiled({"x": X, "i": np.array([[2, 0, 2, 0]]), "u": updates})
    (far,) = compiled({"x": X, "i": np.array([[3, -4, FAR, -FAR]]), "u": updates})
    np.testing.assert_array_equal(far, near)


@pytest.mark.parametrize("reduction", ["none", "mul"])
def test_scatter_nd_counts_from_the_end_and_clamps(reduction):
    proto = model(f"""g (float[n, 4] x, int64[k, 2] i, float[k] u) => (float[n, 4] y) {{
        y = ScatterND<reduction = "{reduction}">(x, i, u) }}""")
    updates = np.array([5, 6], np.float32)
    feeds = {"x": X, "i": np.array([[0, -1], [-3, 1]]), "u": updates}
    compiled = assert_equal_to_onnxruntime(proto, feeds)
    (near,) = compiled({"x": X, "i": np.array([[2, 0], [0, 3]]), "u": updates})
    (far,) = compiled({"x": X, "i": np.array([[FAR, -5], [-FAR, 4]]), "u": updates})
    np.testing.assert_array_equal(far, near)


def test_updates_of_another_length_than_their_indices_are_refused(tmp_path):
    proto = model("""g (float[n, 4] x, int64[k, 1] i, float[u, 4] v) => (float[n, 4] y) {
        y = ScatterND(x, i, v) }""")
    loaded = bscompile.load(bscompile.build(proto).save(tmp_path / "model.bsc"))
    with pytest.raises(UsageError):
        loaded.run({"x": X, "i": np.array([[0], [1]]), "v": X[:1]})


def test_updates_that_leave_out_the_end_of_an_inner_axis_are_declined():
    proto = model("""g (float[4, 3, 3] x, int64[1, 2, 2] i, float[1, 2, 2] u) => (float[4, 3, 3] y)
        { y = ScatterElements<axis = 0>(x, i, u) }""")
    with pytest.raises(ModelError, match="indices on axis 2 are 2 long where 3 is wanted"):
        Compiled(proto)

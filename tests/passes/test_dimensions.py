"""Symbolic dimensions with a length given at build time."""

import numpy as np
import pytest

from bscompile.errors import ModelError
from bscompile.importer import load_model
from tests.passes.helpers import check_equal, dense, model_from

TEXT = """g (float[batch, time, 8] x, float[batch, 8] z)
    => (float[batch, time, 4] y, float[q, 8] d) {
    y = MatMul(x, w)
    d = Concat<axis=0>(z, z)
}"""
WEIGHTS = {"w": dense(8, 4)}


def model():
    proto = model_from(TEXT, WEIGHTS)
    proto.graph.output[1].type.tensor_type.shape.dim[0].dim_param = "2*batch"  # as torch writes it
    return proto


def test_the_named_dimension_is_fixed_everywhere_and_others_stay():
    loaded = load_model(model(), {"batch": 3})
    assert [list(map(str, v.shape)) for v in loaded.graph.inputs] == [
        ["3", "time", "8"],
        ["3", "8"],
    ]
    assert [list(map(str, v.shape)) for v in loaded.graph.outputs] == [
        ["3", "time", "4"],
        ["6", "8"],
    ]
    check_equal(model(), loaded, {"x": dense(3, 5, 8), "z": dense(3, 8)})


def test_the_model_given_is_left_alone():
    proto = model()
    before = proto.SerializeToString()
    load_model(proto, {"batch": 3})
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        ({"bach": 2}, r"no input has a symbolic dimension 'bach' .*Did you mean 'batch'"),
        ({"batch": 3, "q": 1}, "no input has a symbolic dimension 'q'"),
    ],
)
def test_an_unknown_name_is_refused(dimensions, message):
    with pytest.raises(ModelError, match=message):
        load_model(model(), dimensions)


def test_a_model_without_symbols_says_so():
    fixed = model_from("g (float[2, 8] x) => (float[2, 4] y) { y = MatMul(x, w) }", WEIGHTS)
    with pytest.raises(ModelError, match="all its dimensions are fixed"):
        load_model(fixed, {"batch": 1})


def test_lengths_that_do_not_fit_are_refused():
    text = "g (float[n, 8] x, float[4, 8] z) => (float[4, 8] y) { y = Add(x, z) }"
    with pytest.raises(ModelError, match="do not fit"):
        load_model(model_from(text, {}), {"n": 3})
    assert (
        np.prod([int(d) for d in load_model(model_from(text, {}), {"n": 4}).graph.inputs[0].shape])
        == 32
    )

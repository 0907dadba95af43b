"""Inputs to try a model with."""

from __future__ import annotations

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest

from bscompile.artifact.manifest import TensorSpec
from bscompile.errors import UsageError
from bscompile.samples import integer_limits, make_inputs, symbols_of, typical_lengths

IDS = TensorSpec("ids", ("batch", "sequence"), "int64")
MASK = TensorSpec("mask", ("batch", "sequence"), "int64")
IMAGE = TensorSpec("image", ("batch", 3, "?", 8), "float16")


def test_symbols_in_order_of_appearance():
    assert symbols_of([IMAGE, IDS, MASK]) == ["batch", "sequence"]


def test_one_sample_and_128_of_the_rest_unless_told():
    assert typical_lengths([IDS], {}) == {"batch": 1, "sequence": 128}
    assert typical_lengths([IDS], {"batch": 3}) == {"batch": 3, "sequence": 128}
    with pytest.raises(UsageError, match="Did you mean 'batch'"):
        typical_lengths([IDS], {"bach": 3})
    with pytest.raises(UsageError, match="at least 1"):
        typical_lengths([IDS], {"batch": 0})


def test_shapes_dtypes_and_ranges():
    rng = np.random.default_rng(0)
    lengths = {"batch": 2, "sequence": 500}
    flag = TensorSpec("flag", (100,), "bool")
    made = make_inputs([IDS, MASK, IMAGE, flag], lengths, rng, {"ids": 30})
    assert made["ids"].shape == (2, 500)
    assert made["ids"].dtype == np.int64
    assert set(np.unique(made["ids"])) == set(range(30))
    assert set(np.unique(made["mask"])) == {0, 1}
    assert made["image"].shape == (2, 3, 1, 8)
    assert made["image"].dtype == np.float16
    assert made["flag"].dtype == bool


def test_a_table_longer_than_the_dtype_is_clipped():
    made = make_inputs([TensorSpec("i", (9,), "int8")], {}, np.random.default_rng(0), {"i": 9999})
    assert made["i"].min() >= 0


def test_limits_are_the_tables_that_an_input_indexes():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[n, s] ids, int32[n, s] types, float[n, s] mask, int64[n] free)
            => (float[n, s, 4] y, int64[n] z)
        <float[7, 4] words, float[3, 4] kinds, float[5, 4] small, int64[1] one = {1}>
        {
            w = Gather (words, ids)
            flat = Unsqueeze (ids, one)
            same = Identity (flat)
            v = Gather <axis = -2> (small, same)
            cast = Cast <to = 7> (types)
            k = Gather (kinds, cast)
            y = Add (w, k)
            z = Identity (free)
        }
    """)
    for name, length in (("words", 7), ("kinds", 3), ("small", 5)):
        table = np.zeros((length, 4), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(table, name))
    assert integer_limits(model) == {"ids": 5, "types": 3}

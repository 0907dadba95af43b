"""The comparison itself: its tolerance, where it must fail, where it must not."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from bscompile.errors import ModelError
from bscompile.verification import compare, narrowest_eps

EPS = float(np.finfo(np.float32).eps)
WANTED = np.linspace(-4, 4, 12, dtype=np.float32).reshape(3, 4)


def comparison(got, wanted=WANTED, eps=EPS, longest=100):
    return compare(0, "y", {}, np.asarray(got), wanted, eps, longest)


def test_the_tolerance_is_a_function_of_eps_length_and_scale():
    assert comparison(WANTED).tolerance == pytest.approx(16 * EPS * 10 * 4)
    assert comparison(WANTED, longest=400).tolerance == pytest.approx(16 * EPS * 20 * 4)
    assert comparison(WANTED * 2, WANTED * 2).tolerance == pytest.approx(16 * EPS * 10 * 8)


@pytest.mark.parametrize(("factor", "passes"), [(0.9, True), (1.1, False)])
def test_an_error_around_the_tolerance(factor, passes):
    got = WANTED.copy()
    got[1, 2] += np.float32(factor * comparison(WANTED).tolerance)
    result = comparison(got)
    assert result.index == (1, 2)
    assert result.passed is passes


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_in_the_same_places(bad):
    got = WANTED.copy()
    got[0, 1] = bad
    assert comparison(got).error == np.inf
    assert not comparison(got).passed
    assert not comparison(WANTED, got).passed
    assert comparison(got, got).passed


def test_infinities_of_other_signs_differ():
    got, wanted = WANTED.copy(), WANTED.copy()
    got[0, 0], wanted[0, 0] = np.inf, -np.inf
    assert not comparison(got, wanted).passed


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.uint8])
def test_integers_and_booleans_must_be_equal(dtype):
    wanted = np.array([0, 1, 1], dtype)
    assert comparison(wanted, wanted).passed
    assert not comparison(np.array([0, 1, 0], dtype), wanted).passed


def test_zeros_may_differ_by_what_is_zero_in_this_precision():
    wanted = np.zeros(3, np.float32)
    assert comparison(np.full(3, 1e-12, np.float32), wanted).passed
    assert not comparison(np.full(3, 1e-6, np.float32), wanted).passed


def test_an_empty_output_passes():
    assert comparison(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)).passed


@pytest.mark.parametrize("got", [WANTED.T, WANTED.astype(np.float64)])
def test_another_shape_or_dtype_is_another_model(got):
    with pytest.raises(ModelError, match=r"output y is .* the ONNX model gives float32\[3, 4\]"):
        comparison(got)


def test_eps_is_that_of_the_narrowest_float():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g ({0}[n] x) => (float[n] y) {{ y = Cast <to = 1> (x) }}"""
    assert narrowest_eps(onnx.parser.parse_model(text.format("float"))) == EPS
    half = float(np.finfo(np.float16).eps)
    assert narrowest_eps(onnx.parser.parse_model(text.format("float16"))) == half

"""Operators whose ONNX meaning a converter once missed, each named after what was seen."""

import numpy as np
import pytest
import tvm

import bscompile
from bscompile.errors import ModelError, UsageError
from tests.targets.lowering_helpers import Compiled, assert_equal_to_onnxruntime, model

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def built(proto, tmp_path):
    return bscompile.load(bscompile.build(proto).save(tmp_path / "model.bsc"))


@pytest.mark.parametrize("shape", [[3, 0, 1], [-1, 2, 3], [0, -1, 1], [2, 2, 3]])
def test_reshape_to_a_shape_that_is_an_input_keeps_zero_and_infers(shape):
    proto = model("g (float[n, 4] x, int64[3] s) => (float[a, b, c] y) { y = Reshape(x, s) }")
    assert_equal_to_onnxruntime(proto, {"x": X, "s": np.array(shape)})


@pytest.mark.parametrize("shape", [[5, 5, 5], [1, 1, 1], [-2, -3, 2], [-1, -1, 4], [7, -1, 1]])
def test_reshape_to_a_shape_that_does_not_fit_is_refused(shape, tmp_path):
    proto = model("g (float[n, 4] x, int64[3] s) => (float[a, b, c] y) { y = Reshape(x, s) }")
    with pytest.raises(UsageError):
        built(proto, tmp_path).run({"x": X, "s": np.array(shape)})


def test_reshape_of_a_batch_that_leaves_a_rest_is_refused(tmp_path):
    text = "g (float[n, 3] x) => (float[m, 2] y) <int64[2] s = {-1, 2}> { y = Reshape(x, s) }"
    loaded = built(model(text), tmp_path)
    assert loaded(np.ones((4, 3), np.float32)).shape == (6, 2)
    with pytest.raises(UsageError):
        loaded(np.ones((3, 3), np.float32))


def test_layer_normalization_gives_its_mean_and_deviation():
    text = """g (float[n, 4] x, float[4] s) => (float[n, 4] y, float[n, 1] m, float[n, 1] d) {
        y, m, d = LayerNormalization<axis = -1>(x, s) }"""
    assert_equal_to_onnxruntime(model(text), {"x": X, "s": X[0]})


def test_reduce_max_of_a_fully_masked_row_is_minus_infinity():
    text = """g (float[n, 4] x) => (float[n, 1] a, float[n] b, int64[4] c) <int64[1] axis = {1}> {
        a = ReduceMax<keepdims = 1>(x, axis)
        z = Neg(x)
        b = ReduceMin<keepdims = 0>(z, axis)
        i = Cast<to = 7>(x)
        rows = Constant<value_ints = [0]>()
        c = ReduceMax<keepdims = 0>(i, rows) }"""
    x = X.copy()
    compiled = model(text)
    assert_equal_to_onnxruntime(compiled, {"x": x})
    x[1] = -np.inf
    highest, lowest, _ = Compiled(compiled)({"x": x})
    assert highest[1, 0] == -np.inf
    assert lowest[1] == np.inf


@pytest.mark.parametrize("operator", ["Exp", "Tanh", "Sigmoid"])
def test_float64_functions_are_compiled(operator):
    text = f"g (double[n, 4] x) => (double[n, 4] y) {{ y = {operator}(x) }}"
    assert_equal_to_onnxruntime(model(text), {"x": X.astype(np.float64)})


def test_remainder_has_the_divisors_sign_also_beside_infinity():
    text = "g (float[n, 4] x, float[4] d) => (float[n, 4] y) { y = Mod(x, d) }"
    proto = model(text, opset=20)
    x = np.array([[5.5, -5.5, 5.5, -5.5], [3, -3, 3, -3], [0.5, -0.5, 0.5, -0.5]], np.float32)
    d = np.array([3, 3, -3, np.inf], np.float32)
    (got,) = Compiled(proto)({"x": x, "d": d})
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got, np.mod(x, d))


def test_power_of_two_dtypes():
    text = """g (float[n, 4] x, int64[4] e, int32[4] i) => (float[n, 4] y, int32[4] z) {
        y = Pow(x, e)
        z = Pow(i, e) }"""
    feeds = {"x": X, "e": np.array([0, 1, 2, 3]), "i": np.array([3, -3, -5, 46], np.int32)}
    assert_equal_to_onnxruntime(model(text), feeds)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0, 5.0, 6.0, 0.5, -1.0])
def test_power_by_a_constant(exponent):
    text = f"""g (float[n, 4] x) => (float[n, 4] y) {{
        e = Constant<value_float: float = {exponent}>()  a = Abs(x)  y = Pow(a, e) }}"""
    assert_equal_to_onnxruntime(model(text), {"x": X})


def test_what_cannot_be_compiled_is_one_line(tmp_path, capfd):
    """TVM's builder warned on stderr when an error left it in the middle of a function."""
    proto = model("""g (float[n, 4] x, int64[1] k, int64[1] l) => (float[m, 4] y) {
        r = Relu(x)  y = Slice(r, k, l) }""")
    with pytest.raises(ModelError):
        built(proto, tmp_path)
    assert capfd.readouterr().err == ""


def test_is_inf_of_one_sign():
    text = """g (float[n, 4] x) => (bool[n, 4] a, bool[n, 4] b) {
        a = IsInf<detect_negative = 0>(x)
        b = IsInf<detect_positive = 0>(x) }"""
    x = X.copy()
    x[0, :3] = np.inf, -np.inf, np.nan
    assert_equal_to_onnxruntime(model(text), {"x": x})


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("y, m, v = BatchNormalization<training_mode = 1>(x, s, s, s, s)", "training mode"),
        ("y = Dropout(x, r, t)", "training mode"),
    ],
)
def test_training_is_declined_instead_of_computed_as_inference(node, reason):
    text = f"""g (float[n, 4] x, float[4] s) => (float[n, 4] y)
        <float r = {{0.5}}, bool t = {{1}}> {{ {node} }}"""
    with pytest.raises(ModelError, match=reason):
        bscompile.build(model(text))


def test_dtypes_without_kernels_are_declined_before_any_work():
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Cast<to = 22>(x) y = Cast<to = 1>(a) }"
    with pytest.raises(ModelError, match="int4"):
        bscompile.build(model(text, opset=21))


def test_code_that_tvm_cannot_generate_is_declined_in_one_line():
    text = "g (float[64] x) => (float[64] y) { y = Cosh(x) }"
    with pytest.raises(ModelError, match="no code for cpu") as caught:
        bscompile.build(model(text))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, tvm.error.InternalError)


def test_nan_stays_nan():
    text = """g (float[n, 4] x, float[4] z) => (float[n, 4] a, float[n, 4] b, float[n, 4] c,
        float[n, 4] d, float[n, 4] e) {
        a = Relu(x)
        b = Max(x, z)
        c = Max(z, x, x)
        d = Min(x, z)
        e = Erf(x) }"""
    x, z = X.copy(), X[0].copy()
    x[0, :2] = x[2, 3] = z[2] = np.nan
    proto = model(text)
    compiled = Compiled(proto)
    wanted = [np.maximum(x, 0), np.maximum(x, z), np.maximum(x, z), np.minimum(x, z)]
    *got, erf = compiled({"x": x, "z": z})
    for one, want in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, want)
    np.testing.assert_array_equal(np.isnan(erf), np.isnan(x))


@pytest.mark.parametrize("end", ["input", "output"])
def test_a_bfloat16_input_or_output_is_declined_before_any_work(end):
    dtypes = ("bfloat16", "float", 1) if end == "input" else ("float", "bfloat16", 16)
    text = "g ({}[n, 4] x) => ({}[n, 4] y) {{ y = Cast<to = {}>(x) }}".format(*dtypes)
    with pytest.raises(ModelError, match=f"{end} '[xy]' holds bfloat16"):
        bscompile.build(model(text))

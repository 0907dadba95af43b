"""Biases, activations and residuals join the op before them, in every spelling."""

import math

import numpy as np
import pytest

from bscompile.dialect import is_dialect, read_node
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.recognise_linear import RecogniseLinear
from tests.passes.helpers import blocky, dense, model_from, op_types, rewritten

NUMBERS = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "zero": 0.0,
    "sqrt2": math.sqrt(2),
    "rsqrt2": math.sqrt(0.5),
    "slope": math.sqrt(2 / math.pi),
    "cubic": 0.044715,
}


def fuse(body, feeds=None, inputs="float[N, 8] x", outputs="float[N, 12] y", weights=None, **kw):
    """Rewrite a model that begins with h = MatMul(x, w), a dialect op of 8 to 12."""
    constants = {name: np.float32(number) for name, number in NUMBERS.items()}
    text = f"g ({inputs}) => ({outputs}) {{ h = MatMul(x, w)\n{body} }}"
    used = {"w": blocky((8, 12)), "b": dense(12), **constants, **(weights or {})}
    used = {k: v for k, v in used.items() if f"{k}" in text.replace("(", " ( ")}
    step = FuseEpilogues()
    model = rewritten(
        model_from(text, used, **kw), FoldConstants(), RecogniseLinear(), step,
        feeds={"x": dense(3, 8), **(feeds or {})}, k=8,
    )  # fmt: skip
    return model, step


def epilogues(model):
    return [read_node(node).epilogue for node in model.graph if is_dialect(node)]


@pytest.mark.parametrize("body", ["y = Add(h, b)", "y = Add(b, h)"])
def test_bias_on_either_side(body):
    model, step = fuse(body)
    assert op_types(model) == ["BlockSparseMatMul"]
    assert epilogues(model) == [("bias",)]
    assert len(step.applied) == 1


@pytest.mark.parametrize("shape", [(1, 12), (1,), ()])
def test_bias_that_broadcasts_to_out(shape):
    model, _ = fuse("y = Add(h, c)", weights={"c": dense(*shape)})
    assert epilogues(model) == [("bias",)]


def test_bias_of_a_convolution():
    text = """g (float[N, 4, 6, 6] x) => (float[N, 8, 4, 4] y) {
        h = Conv(x, w)
        s = Add(h, b)
        y = Relu(s)
    }"""
    weights = {"w": dense(8, 4, 3, 3), "b": dense(8, 1, 1)}
    model = rewritten(
        model_from(text, weights), RecogniseLinear(), FuseEpilogues(),
        feeds={"x": dense(2, 4, 6, 6)},
    )  # fmt: skip
    assert op_types(model) == ["DenseConv"]
    assert epilogues(model) == [("bias", "relu")]


def test_a_row_along_the_image_is_no_bias_of_a_convolution():
    text = """g (float[2, 4, 6, 6] x) => (float[2, 4, 4, 4] y) {
        h = Conv(x, w)
        y = Add(h, b)
    }"""
    step = FuseEpilogues()
    model = rewritten(
        model_from(text, {"w": dense(4, 4, 3, 3), "b": dense(4)}), RecogniseLinear(), step,
        feeds={"x": dense(2, 4, 6, 6)},
    )  # fmt: skip
    assert op_types(model) == ["DenseConv", "Add"]
    assert "kept apart" in step.refused[0].text


ERF_SPELLINGS = {
    "x*(1+erf)*0.5, torch legacy": """
        a = Div(h, sqrt2)  b1 = Erf(a)  c = Add(b1, one)  d = Mul(h, c)  y = Mul(d, half)""",
    "(0.5*x)*(erf+1), torch dynamo": """
        a = Div(h, sqrt2)  b1 = Erf(a)  c = Add(b1, one)  d = Mul(half, h)  y = Mul(d, c)""",
    "0.5*(x*(1+erf))": """
        a = Mul(h, rsqrt2)  b1 = Erf(a)  c = Add(one, b1)  d = Mul(c, h)  y = Mul(half, d)""",
    "x*(0.5*(1+erf))": """
        a = Mul(rsqrt2, h)  b1 = Erf(a)  c = Add(one, b1)  d = Mul(c, half)  y = Mul(d, h)""",
    "x*(0.5+0.5*erf)": """
        a = Mul(h, rsqrt2)  b1 = Erf(a)  c = Mul(half, b1)  d = Add(half, c)  y = Mul(h, d)""",
    "x*(1+erf)/2": """
        a = Div(h, sqrt2)  b1 = Erf(a)  c = Add(b1, one)  d = Mul(h, c)  y = Div(d, two)""",
    "x/2 + x/2*erf": """
        a = Div(h, sqrt2)  b1 = Erf(a)  c = Div(h, two)  d = Mul(c, b1)  y = Add(c, d)""",
}


def spelled(text):
    return "\n".join(part.strip() for part in text.replace("  ", "\n").splitlines() if part.strip())


@pytest.mark.parametrize("text", ERF_SPELLINGS.values(), ids=ERF_SPELLINGS)
def test_gelu_spelled_with_erf(text):
    model, _ = fuse(spelled(text))
    assert op_types(model) == ["BlockSparseMatMul"]
    assert epilogues(model) == [("gelu",)]


TANH_SPELLINGS = {
    "pow": """
        p = Pow(h, three)  q = Mul(cubic, p)  r = Add(h, q)  s = Mul(slope, r)  t = Tanh(s)
        u = Add(one, t)  v = Mul(half, h)  y = Mul(v, u)""",
    "x*x*x": """
        p0 = Mul(h, h)  p = Mul(p0, h)  q = Mul(p, cubic)  r = Add(q, h)  s = Mul(r, slope)
        t = Tanh(s)  u = Add(t, one)  v = Mul(h, u)  y = Mul(v, half)""",
    "x*(1+c*x*x)": """
        p = Mul(h, h)  q = Mul(p, cubic)  r0 = Add(q, one)  r = Mul(h, r0)  s = Mul(r, slope)
        t = Tanh(s)  u = Add(t, one)  u2 = Mul(u, half)  y = Mul(u2, h)""",
}


@pytest.mark.parametrize("text", TANH_SPELLINGS.values(), ids=TANH_SPELLINGS)
def test_gelu_spelled_with_tanh(text):
    model, _ = fuse(spelled(text))
    assert op_types(model) == ["BlockSparseMatMul"]
    assert epilogues(model) == [("gelu_tanh",)]


@pytest.mark.parametrize(
    ("body", "step", "opset"),
    [
        ("y = Relu(h)", "relu", 20),
        ("y = Gelu(h)", "gelu", 20),
        ('y = Gelu<approximate: string = "tanh">(h)', "gelu_tanh", 20),
        ("y = com.microsoft.Gelu(h)", "gelu", 20),
        ("y = com.microsoft.FastGelu(h)", "gelu_tanh", 20),
        ("s = Sigmoid(h)\ny = Mul(h, s)", "silu", 20),
        ("s = Sigmoid(h)\ny = Mul(s, h)", "silu", 20),
        ("y = Swish(h)", "silu", 24),
        ("y = HardSwish(h)", "hard_swish", 20),
        (
            "a = Add(h, three)\nc = Clip(a, zero, six)\nd = Mul(h, c)\ny = Div(d, six)",
            "hard_swish",
            20,
        ),
        ("c = HardSigmoid<alpha: float = 0.16666667>(h)\ny = Mul(c, h)", "hard_swish", 20),
        ("y = HardSigmoid(h)", "hard_sigmoid:0.20000000298023224:0.5", 20),
        ("y = LeakyRelu<alpha: float = 0.25>(h)", "leaky_relu:0.25", 20),
        ("y = Clip(h, zero, six)", "clip:0.0:6.0", 20),
        ("y = Clip(h, , six)", "clip:-inf:6.0", 20),
        ("y = Clip(h, zero)", "relu", 20),
    ],
)
def test_activations_with_a_name(body, step, opset):
    model, _ = fuse(body, opset=opset)
    assert op_types(model) == ["BlockSparseMatMul"]
    assert epilogues(model) == [(step,)]


@pytest.mark.parametrize(
    "body",
    [
        # almost GELU: a wrong constant, a missing half, another inner function
        "a = Div(h, two)\nb1 = Erf(a)\nc = Add(b1, one)\nd = Mul(h, c)\ny = Mul(d, half)",
        "a = Div(h, sqrt2)\nb1 = Erf(a)\nc = Add(b1, one)\ny = Mul(h, c)",
        "a = Div(h, sqrt2)\nb1 = Tanh(a)\nc = Add(b1, one)\nd = Mul(h, c)\ny = Mul(d, half)",
        "a = Mul(h, two)\ns = Sigmoid(a)\ny = Mul(h, s)",
        "s = Sigmoid(h)\ny = Add(h, s)",
        "y = Tanh(h)",
        "y = Clip(h, six, zero)",
        "c = HardSigmoid(h)\ny = Mul(c, h)",
        "a = Add(h, three)\nc = Clip(a, zero, six)\nd = Mul(h, c)\ny = Mul(d, six)",
    ],
)
def test_what_only_resembles_an_activation_stays(body):
    model, step = fuse(body)
    assert len(op_types(model)) == 1 + len(body.splitlines())
    assert not step.applied


def test_bias_activation_residual():
    body = "s = Add(h, b)\na = Relu(s)\ny = Add(a, r)"
    model, step = fuse(body, {"r": dense(3, 12)}, "float[N, 8] x, float[N, 12] r")
    assert op_types(model) == ["BlockSparseMatMul"]
    assert epilogues(model) == [("bias", "relu", "residual")]
    assert len(step.applied) == 3


def test_bias_residual_relu():
    body = "s = Add(h, b)\na = Add(r, s)\ny = Relu(a)"
    model, _ = fuse(body, {"r": dense(3, 12)}, "float[N, 8] x, float[N, 12] r")
    assert epilogues(model) == [("bias", "residual", "relu")]


def test_steps_stop_after_a_full_epilogue():
    body = "s = Add(h, b)\na = Relu(s)\nt = Add(a, r)\ny = Relu(t)"
    model, _ = fuse(body, {"r": dense(3, 12)}, "float[N, 8] x, float[N, 12] r")
    assert op_types(model) == ["BlockSparseMatMul", "Relu"]


def test_gelu_after_a_residual_stays():
    body = "a = Add(r, h)\ny = Gelu(a)"
    model, _ = fuse(body, {"r": dense(3, 12)}, "float[N, 8] x, float[N, 12] r")
    assert op_types(model) == ["BlockSparseMatMul", "Gelu"]
    assert epilogues(model) == [("residual",)]


def test_a_value_with_two_readers_is_not_fused_away():
    model, step = fuse("y = Relu(h)\nz = Neg(h)", outputs="float[N, 12] y, float[N, 12] z")
    assert op_types(model) == ["BlockSparseMatMul", "Relu", "Neg"]
    assert not step.applied


def test_a_value_that_is_an_output_is_not_fused_away():
    model, step = fuse("y = Relu(h)", outputs="float[N, 12] y, float[N, 12] h")
    assert op_types(model) == ["BlockSparseMatMul", "Relu"]
    assert not step.applied


def test_an_inner_value_of_gelu_that_others_read_keeps_it_apart():
    body = spelled(ERF_SPELLINGS["0.5*(x*(1+erf))"]) + "\nz = Neg(c)"
    model, step = fuse(body, outputs="float[N, 12] y, float[N, 12] z")
    assert not step.applied
    assert "Erf" in op_types(model)


def test_the_sum_of_a_value_with_itself_stays():
    model, step = fuse("y = Add(h, h)")
    assert op_types(model) == ["BlockSparseMatMul", "Add"]
    assert not step.applied


def test_a_residual_that_comes_from_a_later_layer_keeps_the_order():
    body = "g1 = Relu(x)\nk = MatMul(g1, v)\ny = Add(h, k)"
    model, _ = fuse(body, weights={"v": blocky((8, 12), seed=3)})
    assert op_types(model) == ["Relu", "BlockSparseMatMul", "BlockSparseMatMul"]
    assert sorted(epilogues(model)) == [(), ("residual",)]


@pytest.mark.parametrize(
    ("shape", "declared"), [((3, 1), "3, 1"), ((3, 12), "M, 12"), ((2, 3, 12), "2, 3, 12")]
)
def test_a_residual_that_may_broadcast_is_refused(shape, declared):
    outputs = "float[2, N, 12] y" if len(shape) == 3 else "float[N, 12] y"
    model, step = fuse(
        "y = Add(h, r)", {"r": dense(*shape)}, f"float[N, 8] x, float[{declared}] r", outputs
    )
    assert op_types(model) == ["BlockSparseMatMul", "Add"]
    assert "not surely equal" in step.refused[0].text


def test_a_computed_bias_of_known_shape_is_taken():
    model, _ = fuse("y = Add(h, r)", {"r": dense(12)}, "float[N, 8] x, float[12] r")
    assert epilogues(model) == [("bias",)]

"""Layers of quantised models: what becomes an int8 op, what is refused and why."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.dialect import is_quantized, read_node
from bscompile.importer import load_model
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.recognise_quantized import RecogniseQuantized, is_quantized_model
from bscompile.passes.requantize import Requantize
from tests.passes.helpers import check_equal, dense, model_from

W = np.random.default_rng(0).integers(-127, 128, (24, 32)).astype(np.int8)
W[:8, :16] = 0
SCALES = np.random.default_rng(1).uniform(0.01, 0.02, 24).astype(np.float32)
ENDS = {"s": np.float32(0.05), "z": np.uint8(120), "s2": np.float32(0.1), "z2": np.uint8(128)}
STATIC = """g (float[b, 32] x) => (float[b, 24] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    w = DequantizeLinear<axis: int = %(axis)d>(w8, ws%(wz)s)
    h = %(op)s
    %(tail)s
}"""
TAIL = (
    "hb = Add(h, bias) r = Relu(hb) q2 = QuantizeLinear(r, s2, z2) y = DequantizeLinear(q2, s2, z2)"
)


def static(axis=1, op="MatMul(d, w)", tail="y = Identity(h)", wz="", **weights):
    given = {"w8": W.T.copy(), "ws": SCALES, "bias": dense(24), **ENDS, **weights}
    return model_from(STATIC % {"axis": axis, "op": op, "tail": tail, "wz": wz}, given)


def rewritten(proto, *passes):
    model = load_model(proto)
    for step in passes:
        step(model)
    return model


def layers(model):
    return [node for node in model.graph if is_quantized(node)]


def only_op(model):
    (node,) = layers(model)
    return read_node(node)


def test_a_static_layer_takes_eight_bits_and_gives_them():
    proto = static(tail=TAIL)
    model = rewritten(proto, RecogniseQuantized(), FuseEpilogues(), Requantize())
    op = only_op(model)
    assert op.form == "block_sparse"
    assert op.epilogue == ("bias", "relu")
    np.testing.assert_array_equal(op.weight.to_dense(), W)
    ends = op.quantization
    assert (ends.activation, ends.x_dtype, ends.q_dtype) == ("static", "float32", "uint8")
    assert (ends.x_scale, ends.x_zero) == (float(ENDS["s"]), 120)
    assert (ends.y_dtype, ends.y_scale, ends.y_zero) == ("uint8", float(ENDS["s2"]), 128)
    np.testing.assert_array_equal(ends.scale, SCALES)
    check_equal(proto, model, {"x": dense(5, 32)}, k=2**20)  # a flipped step is 1/255


@pytest.mark.parametrize(
    ("axis", "op", "weights"),
    [
        (1, "MatMul(d, w)", {}),
        (-1, "Gemm(d, w, bias)", {}),
        (0, "Gemm<transB: int = 1>(d, w, bias)", {"w8": W}),
        (1, "MatMul(d, w)", {"ws": np.float32(0.02)}),
    ],
)
def test_spellings(axis, op, weights):
    proto = static(axis, op, **weights)
    model = rewritten(proto, RecogniseQuantized())
    np.testing.assert_array_equal(only_op(model).weight.to_dense(), W)
    check_equal(proto, model, {"x": dense(5, 32)})


def test_who_else_reads_the_quantised_x_keeps_it():
    proto = static(tail="d2 = DequantizeLinear(q, s, z) t = ReduceSum(d2) y = Add(h, t)")
    model = rewritten(proto, RecogniseQuantized(), FuseEpilogues(), Requantize())
    assert only_op(model).quantization.x_dtype == "uint8"
    check_equal(proto, model, {"x": dense(5, 32)})


def test_a_dynamic_layer():
    text = """g (float[b, 32] x) => (float[b, 24] y) {
        q, s, z = DynamicQuantizeLinear(x)
        p = MatMulInteger(q, w8, z, wz)
        f = Cast<to: int = 1>(p)
        t = Mul(s, ws)
        y = Mul(f, t)
    }"""
    proto = model_from(text, {"w8": W.T.copy(), "ws": SCALES, "wz": np.zeros(24, np.int8)})
    model = rewritten(proto, RecogniseQuantized())
    assert only_op(model).quantization.activation == "tensor"
    assert [node.op_type for node in model.graph][-1] == "QuantizedBlockSparseMatMul"
    check_equal(proto, model, {"x": dense(5, 32)}, k=2**20)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"w8": W.T.astype(np.uint8).copy()}, "not a constant int8 matrix"),
        ({"wz": ", wz", "zero": 3}, "has a zero point"),
        ({"axis": 0, "ws": np.ones(32, np.float32)}, "scales belong to its inputs"),
        ({"op": "Gemm<alpha: float = 0.5>(d, w, bias)"}, "scales or transposes x"),
        ({"op": "Gemm(d, w, c)", "c": dense(1, 1)}, "the addend of Gemm is no bias"),
    ],
)
def test_refusals(options, reason):
    if "zero" in options:
        zero = options.pop("zero")
        options |= {"wz": ", wz"}
        given = {"w8": W.T.copy(), "ws": SCALES, "bias": dense(24), **ENDS}
        given |= {"wz": np.full(24, zero, np.int8)}
        text = STATIC % {
            "axis": 1, "op": "MatMul(d, w)", "tail": "y = Identity(h)", "wz": ", wz",
        }  # fmt: skip
        proto = model_from(text, given)
    else:
        proto = static(**options)
    step = RecogniseQuantized()
    model = rewritten(proto, step)
    assert layers(model) == []
    assert [reason in note.text for note in step.refused] == [True]


def test_only_quantised_models_count_as_such():
    assert is_quantized_model(load_model(static()))
    plain = model_from("g (float[2, 2] x) => (float[2, 2] y) { y = Relu(x) }")
    assert not is_quantized_model(load_model(plain))

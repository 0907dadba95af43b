"""Half-precision graphs compute in float32; the contract and the stored size stay."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from bscompile.importer import load_model
from bscompile.passes import pipeline
from bscompile.passes.widen_float16 import STORAGE_KEY, WidenFloat16
from tests.passes.helpers import blocky, dense, keep_form, model_from, op_types, rewritten, run_ort
from tests.tolerance import assert_close

TEXT = """g (float16[N, 8] x) => (float16[N, 12] y) {
    h = MatMul(x, w)
    y = Relu(h)
}"""
WEIGHTS = {"w": blocky((8, 12)).astype(np.float16)}
FEEDS = {"x": dense(3, 8).astype(np.float16)}


def test_inputs_and_outputs_stay_half_and_all_between_is_float32():
    model = rewritten(model_from(TEXT, WEIGHTS), WidenFloat16(), feeds=FEEDS, k=8)
    assert op_types(model) == ["Cast", "MatMul", "Relu", "Cast"]
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [
        ir.DataType.FLOAT16
    ] * 2
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert all(v.dtype == ir.DataType.FLOAT for v in model.graph.initializers.values())


def test_the_result_is_nearer_to_the_truth_than_half_precision():
    weights = {"w": dense(512, 16).astype(np.float16)}
    text = "g (float16[N, 512] x) => (float16[N, 16] y) { y = MatMul(x, w) }"
    x = dense(4, 512).astype(np.float16)
    model = load_model(model_from(text, weights))
    WidenFloat16()(model)
    want = x.astype(np.float64) @ weights["w"].astype(np.float64)
    assert_close(run_ort(model, {"x": x})[0], want, np.float16, 1)


def test_casts_constants_and_mixed_parts():
    text = """g (float[N, 8] x) => (float[N, 8] y) {
        a = Cast<to: int = 10>(x)
        c = Constant<value: tensor = float16[1] {16384}>()
        m = Mul(a, c)
        y = Cast<to: int = 1>(m)
    }"""
    model = rewritten(model_from(text), WidenFloat16(), feeds={"x": np.ones((2, 8), np.float32)})
    assert {v.dtype for n in model.graph for v in n.outputs} == {ir.DataType.FLOAT}


def test_an_input_that_is_also_an_output():
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Neg", ["x"], ["y"])], "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["N"])],
            [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT16, ["N"]) for n in "yx"],
        ),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip
    rewritten(proto, WidenFloat16(), feeds={"x": dense(3).astype(np.float16)})


def test_an_initializer_that_is_also_an_output():
    text = "g (float16[N, 8] x) => (float16[N, 12] y, float16[8, 12] w) { y = MatMul(x, w) }"
    rewritten(model_from(text, WEIGHTS), WidenFloat16(), feeds=FEEDS, k=8)


@pytest.mark.parametrize("half", [np.float16, np.float32])
def test_only_weights_that_came_as_half_are_marked_for_two_bytes(half):
    text = TEXT if half is np.float16 else TEXT.replace("float16", "float")
    weights = {"w": WEIGHTS["w"].astype(half)}
    model = load_model(model_from(text, weights))
    pipeline.run(model, pipeline.pipeline(keep_form))
    marks = {v.name: v.metadata_props.get(STORAGE_KEY) for v in model.graph.initializers.values()}
    values = next(mark for name, mark in marks.items() if "values" in name)
    assert values == ("float16" if half is np.float16 else None)
    assert all(mark is None for name, mark in marks.items() if "values" not in name)


def test_a_float32_model_is_left_alone():
    step = WidenFloat16()
    model = load_model(model_from(TEXT.replace("float16", "float"), {"w": dense(8, 12)}))
    assert not step(model).modified
    assert not step.applied


def test_the_body_of_a_loop_is_widened_too():
    text = """g (float16[4, 3] x) => (float16[3] y) {
        y, trace = Scan<num_scan_inputs: int = 1, body = b (float16[3] s, float16[3] r)
            => (float16[3] t, float16[3] u) { t = Add(s, r)  u = Neg(t) }>(zero, x)
    }"""
    weights = {"zero": np.zeros(3, np.float16)}
    feeds = {"x": dense(4, 3).astype(np.float16)}
    rewritten(model_from(text, weights), WidenFloat16(), feeds=feeds)

"""Lowering: sizes stay symbolic, weights stay outside, what cannot be compiled is named."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bscompile
from bscompile.dialect import DOMAIN, ConvGeometry, LinearOp, evaluate, make_node
from bscompile.errors import ModelError
from bscompile.targets.lowering import lower
from bscompile.targets.lowering.support import check_supported
from tests.targets.lowering_helpers import Compiled, assert_equal_to_onnxruntime, context, model
from tests.tolerance import assert_close

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_a_range_over_a_symbolic_size_keeps_it():
    proto = model("""g (float[n,4] x) => (float[n,4] y, int64[n] r) {
        s = Shape(x)  zero = Constant<value_int: int = 0>()  one = Constant<value_int: int = 1>()
        n = Gather(s, zero)  r = Range(zero, n, one)
        f = Cast<to: int = 1>(r)  last = Constant<value_ints: ints = [-1]>()
        c = Unsqueeze(f, last)  y = Add(x, c)
    }""")
    compiled = assert_equal_to_onnxruntime(proto, {"x": normal(3, 4)}, {"x": normal(1, 4)})
    assert [o.shape for o in compiled.lowered.outputs] == [("n", 4), ("n",)]


def test_shapes_computed_in_the_graph_are_resolved():
    proto = model("""g (float[b,s,12] x) => (float[b,p,s,q] y) {
        shape = Shape(x)  zero = Constant<value_ints: ints = [0]>()
        one = Constant<value_ints: ints = [1]>()  three = Constant<value_ints: ints = [3]>()
        b = Gather(shape, zero)  two = Constant<value_ints: ints = [2]>()
        s = Slice(shape, one, two, zero)  w = Gather(shape, two)  d = Div(w, three)
        target = Concat<axis: int = 0>(b, s, three, d)
        split = Reshape(x, target)  y = Transpose<perm: ints = [0, 2, 1, 3]>(split)
    }""")
    compiled = assert_equal_to_onnxruntime(proto, {"x": normal(2, 5, 12)}, {"x": normal(1, 1, 12)})
    assert compiled.lowered.outputs[0].shape == ("b", 3, "s", 4)


def test_an_expand_to_a_symbolic_shape():
    proto = model("""g (float[1,n] x, float[m,n] like) => (float[m,n] y) {
        s = Shape(like)  y = Expand(x, s)
    }""")
    assert_equal_to_onnxruntime(proto, {"x": normal(1, 7), "like": normal(3, 7)})


def test_a_slice_by_symbolic_ends_and_negative_steps():
    proto = model("""g (float[n,9] x) => (float[a,b] y, float[n,c] z) {
        s = Shape(x)  zero = Constant<value_ints: ints = [0]>()
        one = Constant<value_ints: ints = [1]>()  n = Slice(s, zero, one)
        y = Slice(x, one, n, zero)
        start = Constant<value_ints: ints = [-1]>()  end = Constant<value_ints: ints = [-20]>()
        step = Constant<value_ints: ints = [-2]>()  z = Slice(x, start, end, one, step)
    }""")
    assert_equal_to_onnxruntime(proto, {"x": normal(4, 9)}, {"x": normal(2, 9)})


def test_a_bad_index_is_clamped_not_followed():
    proto = model(
        """g (float[5,3] table, int64[k] at) => (float[k,3] y) { y = Gather(table, at) }"""
    )
    table = normal(5, 3)
    compiled = Compiled(proto)
    (got,) = compiled({"table": table, "at": np.array([0, -1, 4, 10**9, -(10**9)])})
    np.testing.assert_array_equal(got, table[[0, 4, 4, 4, 0]])


def test_weights_are_parameters_and_scalars_are_not():
    proto = model("""g (float[n,16] x) => (float[n,16] y)
        <float[16] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float c = {2}>
        { a = Mul(x, w)  y = Add(a, c) }""")
    compiled = assert_equal_to_onnxruntime(proto, {"x": normal(3, 16)})
    assert [name for name, _ in compiled.lowered.params] == ["w"]


def test_the_model_handed_in_is_left_alone():
    proto = model("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    loaded = ir.from_proto(proto)
    before = ir.to_proto(loaded).SerializeToString()
    lower(loaded, context())
    assert ir.to_proto(loaded).SerializeToString() == before


def test_local_functions_are_expanded():
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20, "mine": 1]>
        g (float[2,3] x) => (float[2,3] y) { y = mine.Double(x) }
        <domain: "mine", opset_import: ["": 20]> Double (a) => (b) { b = Add(a, a) }""")
    assert_equal_to_onnxruntime(proto, {"x": normal(2, 3)})


def test_an_operator_of_another_domain_is_not_taken_for_the_standard_one():
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20, "acme": 1]>
        g (float[2,3] x) => (float[2,3] y) { y = acme.Relu(x) }""")
    with pytest.raises(ModelError, match=r"acme::Relu \(opset 1\) of node 'y' cannot be compiled"):
        check_supported(ir.from_proto(proto))


@pytest.mark.parametrize("op", ["Attention", "BiasGelu", "SkipLayerNormalization"])
def test_microsoft_operators_are_not_taken_for_standard_ones(op):
    node = onnx.helper.make_node(op, ["x"], ["y"], name="n")
    value = [onnx.helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, [2]) for v in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    with pytest.raises(ModelError, match=f"ai.onnx::{op}"):
        check_supported(ir.from_proto(proto))


def test_an_opset_from_the_future_is_refused():
    proto = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.opset_import[0].version = 999
    with pytest.raises(ModelError, match="opset 999"):
        check_supported(ir.from_proto(proto))


def test_a_node_that_cannot_be_converted_is_named():
    proto = model("""g (float[n] x, int64[1] k) => (float[m] y) {
        zero = Constant<value_ints: ints = [0]>()  y = Slice(x, zero, k) }""")
    with pytest.raises(ModelError, match=r"node 'y' \(Slice, opset 20\)"):
        lower(ir.from_proto(proto), context())


def test_an_input_without_a_shape_is_refused():
    proto = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x' has no type and shape"):
        lower(ir.from_proto(proto), context())


@pytest.mark.parametrize("epilogue", [(), ("bias", "relu"), ("bias", "residual", "gelu")])
@pytest.mark.parametrize(
    "conv",
    [
        ConvGeometry((1, 1)),
        ConvGeometry((3, 2), (2, 1), (1, 0, 1, 1)),
        ConvGeometry((2, 3), (1, 2), (0, 2, 1, 0), (2, 1)),
        ConvGeometry((4, 4), (4, 4)),
    ],
)
def test_a_convolution_of_ours(conv, epilogue):
    op = LinearOp("conv", normal(5, 3 * conv.kernel[0] * conv.kernel[1]), epilogue, conv)
    proto = model("""g (float[n,3,9,8] x, float[5] b, float[n,5,p,q] r) => (float[n,5,p,q] y) {
        y = Identity(r) }""")
    loaded = ir.from_proto(proto)
    graph = loaded.graph
    graph.remove(graph[0])
    oh, ow = conv.output_size(9, 8)
    x, bias, residual = graph.inputs
    residual.shape = ir.Shape(["n", 5, oh, ow])
    values = {"bias": bias, "residual": residual}
    tensors = tuple(values[step] for step in epilogue if step in values)
    node = make_node(op, graph, x, tensors, output=graph.outputs[0])
    graph.append(node)
    graph.outputs[0] = node.outputs[0]
    loaded.opset_imports[DOMAIN] = 1
    for n in (1, 3):
        feeds = {"x": normal(n, 3, 9, 8), "b": normal(5), "r": normal(n, 5, oh, ow)}
        steps = tuple(feeds[s[0]] for s in epilogue if s in ("bias", "residual"))
        want = evaluate(op, feeds["x"], steps)
        (got,) = Compiled(loaded)(feeds)
        assert_close(got, want, np.float32, op.shape[1])


BRANCHES = """g (float[N,3] x{extra}) => (float[N,3] y) {{
    {condition}
    y = If(c) <then_branch = t () => (float[N,3] p) {{ p = Relu(x) }},
               else_branch = e () => (float[N,3] q) {{ q = Neg(x) }}>
}}"""


@pytest.mark.parametrize(("rank", "want"), [(2, np.maximum), (3, lambda x, _: -x)])
def test_an_if_that_shapes_decide_leaves_one_branch(rank, want, tmp_path):
    condition = f"s = Shape(x) r = Size(s) k = Constant<value_int: int = {rank}>() c = Equal(r, k)"
    proto = model(BRANCHES.format(extra="", condition=condition))
    loaded = bscompile.load(bscompile.build(proto).save(tmp_path / "model.bsc"))
    x = normal(4, 3)
    np.testing.assert_array_equal(loaded.run({"x": x})["y"], want(x, 0))


FROM_DATA = """zero = Constant<value_int: int = 0>() row = Gather(x, zero) n = Size(x)
    d = Cast<to = 9>(row) c = ReduceMax<keepdims = 0>(d, zero)"""


@pytest.mark.parametrize(("extra", "condition"), [(", bool c", ""), ("", FROM_DATA)])
def test_an_if_that_data_decide_is_refused_at_once(extra, condition):
    proto = model(BRANCHES.format(extra=extra, condition=condition))
    with pytest.raises(ModelError, match=r"'y' \(If, opset 20\).*condition is computed from data"):
        check_supported(ir.from_proto(proto))


def test_packed_weights_leave_a_model_that_is_used_up(tmp_path):
    """No weight may be in memory both as the model has it and as the kernel wants it."""
    values = ",".join(["1.5"] * 192)
    proto = model(
        "g (float[N,24] x) => (float[N,8] y, float[N,8] z) "
        f"<float[24,8] w = {{{values}}}> {{ y = MatMul(x, w) z = MatMul(x, w) }}"
    )
    loaded = ir.from_proto(proto)
    weight = loaded.graph.initializers["w"]
    lowered = lower(loaded, context(), use_up=True)
    assert weight.const_value is None
    assert [name for name, _ in lowered.params] == ["w"]

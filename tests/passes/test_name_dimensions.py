"""Symbolic sizes get the names of what they are."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bscompile.importer import load_model
from bscompile.sizes import Known, UncertainError, evaluate, known
from bscompile.sizes.symbols import SympyAlgebra, symbol
from tests.passes.helpers import model_from

ALGEBRA = SympyAlgebra()
BATCH, SEQ = symbol("batch"), symbol("seq")


def shape(source, name="y", head="float[batch,seq,12] x, float[12] w"):
    """The shape that a value of ``g (head) => (float y) { source }`` gets."""
    model = load_model(model_from(f"g ({head}) => (float[] y) {{ {source} }}"))
    values = {v.name: v for node in model.graph for v in node.outputs}
    return [d if isinstance(d, int) else d.value for d in values[name].shape]


SIZES = """all = Shape(x) zero = Constant<value_ints: ints = [0]>()
    one = Constant<value_ints: ints = [1]>() two = Constant<value_ints: ints = [2]>()
    rest = Constant<value_ints: ints = [-1]>() four = Constant<value_ints: ints = [4]>()
    batch = Slice(all, zero, one) seq = Slice(all, one, two) """


NAMED = {
    "t = Concat<axis: int = 0>(rest, four) y = Reshape(x, t)": ["3*batch*seq", 4],
    "t = Concat<axis: int = 0>(seq, rest, four) y = Reshape(x, t)": ["seq", "3*batch", 4],
    "b = Mul(batch, seq) t = Concat<axis: int = 0>(b, rest) y = Reshape(x, t)": ["batch*seq", 12],
    "y = Concat<axis: int = 1>(x, x)": ["batch", "2*seq", 12],
    "y = Slice(x, one, seq, one)": ["batch", "seq - 1", 12],
    "y = Slice(x, zero, rest, one)": ["batch", "seq - 1", 12],
    "y = Slice(x, zero, four, one)": ["batch", "Min(4, seq)", 12],
    "t = Concat<axis: int = 0>(two, two, one) y = Tile(x, t)": ["2*batch", "2*seq", 12],
    "f = ConstantOfShape(all) y = Add(x, f)": ["batch", "seq", 12],
    "s = Slice(x, zero, four, one) y = Add(x, s)": ["batch", "seq", 12],
    """n = Squeeze(seq) a = Constant<value_int: int = 0>() i = Constant<value_int: int = 1>()
       r = Range(a, n, i) f = Cast<to: int = 1>(r) c = Unsqueeze(f, one) y = Add(x, c)""": [
        *("batch", "seq", 12),
    ],
    "g = Slice(w, zero, four, zero) y = LayerNormalization(x, w)": ["batch", "seq", 12],
}

DATA = (
    "n = NonZero(x) t = Transpose(n) y = Cast<to: int = 1>(t)",
    """i = Cast<to: int = 7>(x) s = ReduceMax<keepdims: int = 0>(i) k = Unsqueeze(s, zero)
       t = Concat<axis: int = 0>(k, k, k) y = Expand(x, t)""",
    """five = Constant<value_ints: ints = [5]>() t = Concat<axis: int = 0>(five, rest)
       y = Reshape(x, t)""",
)


@pytest.mark.parametrize("source", NAMED)
def test_what_the_graph_computes_has_a_name(source):
    assert shape(SIZES + source) == NAMED[source]


@pytest.mark.parametrize("source", DATA)
def test_what_only_the_data_tell_has_a_name_of_its_own(source):
    named = [d for d in shape(SIZES + source) if isinstance(d, str)]
    assert named
    assert not {"batch", "seq"} & set(named)


def test_two_unknown_sizes_are_not_taken_for_one():
    source = "a = NonZero(x) n = Neg(x) b = NonZero(n) c = Mul(a, a) y = Cast<to: int = 1>(b)"
    assert shape(source, "a") != shape(source, "b")
    assert shape(source, "a") == shape(source, "c")


def test_a_dimension_that_is_written_as_an_expression_binds_nobody():
    """Nothing checks that an input called ``2*n`` is twice as long as one called ``n``."""
    model = model_from(
        "g (float[n,4] x, float[m,4] z) => (float[k,4] y)"
        " { d = Concat<axis: int = 0>(x, x) y = Add(d, z) }"
    )
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "2*n"
    values = {v.name: v for node in load_model(model).graph for v in node.outputs}
    assert values["d"].shape[0].value == "2*n"
    assert values["y"].shape[0].value != "2*n"


def test_a_residual_is_fused_where_the_batch_is_symbolic(tmp_path):
    """Its shape was ``unk__7`` before: x went through a Reshape with a computed target."""
    import bscompile

    rng = np.random.default_rng(0)
    proto = model_from("""g (float[batch,seq,32] x) => (float[batch,seq,32] y) {
        all = Shape(x)  first = Constant<value_ints: ints = [0]>()
        one = Constant<value_ints: ints = [1]>()  two = Constant<value_ints: ints = [2]>()
        batch = Gather<axis: int = 0>(all, first)  seq = Gather<axis: int = 0>(all, one)
        rows = Mul(batch, seq)  d = Constant<value_ints: ints = [32]>()
        flat = Concat<axis: int = 0>(rows, d)  back = Concat<axis: int = 0>(batch, seq, d)
        h = Reshape(x, flat)  r = Relu(h)  t = Reshape(r, back)
        p = MatMul(t, w)  y = Add(p, t) }""")
    weight = rng.standard_normal((32, 32)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    compiled = bscompile.build(path)
    notes = [n.text for n in compiled.report.notes]
    assert any("residual fused" in text for text in notes), notes
    model = bscompile.load(compiled.save(tmp_path / "m.bsc"))
    peer = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in [(1, 1), (2, 5), (3, 1)]:
        x = rng.standard_normal((*size, 32)).astype(np.float32)
        np.testing.assert_allclose(model(x), peer.run(None, {"x": x})[0], rtol=0, atol=1e-4)


def test_quotients_leave_no_rest():
    assert ALGEBRA.quotient(12 * BATCH * SEQ, 4 * SEQ) == 3 * BATCH
    with pytest.raises(UncertainError):
        ALGEBRA.quotient(12 * BATCH, 5)
    with pytest.raises(UncertainError):
        ALGEBRA.quotient(12 * BATCH, SEQ)


def test_comparisons_hold_for_all_sizes_from_one_on():
    assert ALGEBRA.certain(">=", BATCH * SEQ, 1)
    assert ALGEBRA.certain(">", SEQ + 1, SEQ)
    assert ALGEBRA.certain(">=", BATCH * SEQ, SEQ)
    assert not ALGEBRA.certain("==", SEQ, 0)
    for question in [(">", SEQ, 1), ("==", BATCH, SEQ), (">=", BATCH, SEQ)]:
        with pytest.raises(UncertainError):
            ALGEBRA.certain(*question)
    maybe_none = symbol("found", least=0)
    with pytest.raises(UncertainError):
        ALGEBRA.certain(">=", maybe_none, 1)


def test_an_operator_without_a_certain_answer_gives_none():
    sizes = known([BATCH, 3], "int64")
    zero = Known(np.array([0], object), "int64")
    (picked,) = evaluate("Gather", [sizes, zero], {}, ALGEBRA)
    assert picked.ints() == [BATCH]
    limit = Known(np.array([2], object), "int64")
    assert evaluate("Greater", [picked, limit], {}, ALGEBRA) is None
    (same,) = evaluate("Equal", [picked, zero], {}, ALGEBRA)
    assert same.ints() == [False]

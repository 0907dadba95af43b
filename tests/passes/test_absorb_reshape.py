"""Reshapes around a layer go where the leading axes come back, and stay where they do not."""

import pytest

from bscompile.importer import load_model
from bscompile.passes.absorb_reshape import AbsorbReshape
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.recognise_linear import RecogniseLinear
from tests.passes.helpers import check_equal, dense, model_from, op_types

WEIGHTS = {"w": dense(8, 6), "b": dense(6)}


def absorbed(x, rows, back, outputs="(float[p, q, r] y)", last="y = Relu(u)"):
    text = f"""g (float[{x}] x) => {outputs} {{
        rows = Constant<value_ints: ints = [{rows}]>()
        back = Constant<value_ints: ints = [{back}]>()
        f = Reshape(x, rows)
        t = Gemm(f, w, b)
        u = Reshape(t, back)
        {last}
    }}"""
    proto = model_from(text, WEIGHTS)
    graph = load_model(proto)
    RecogniseLinear()(graph)
    step = AbsorbReshape()
    step(graph)
    FuseEpilogues()(graph)
    return proto, graph, len(step.applied)


@pytest.mark.parametrize(
    ("x", "rows", "back"),
    [("2, 3, 8", "6, 8", "2, 3, 6"), ("2, 3, 8", "-1, 8", "2, -1, 6")],
)
def test_the_activation_behind_the_reshape_is_fused(x, rows, back):
    proto, graph, count = absorbed(x, rows, back)
    assert count == 1
    assert [t for t in op_types(graph) if t != "Constant"] == ["DenseMatMul"]
    check_equal(proto, graph, {"x": dense(2, 3, 8)})


@pytest.mark.parametrize(
    ("x", "rows", "back"),
    [
        ("2, 3, 8", "6, 8", "3, 2, 6"),  # other rows together
        ("2, 4, 6", "6, 8", "2, 3, 6"),  # the features come from elsewhere
        ("6, 8", "6, 8", "2, 3, 6"),
    ],
)
def test_other_axes_stay(x, rows, back):
    proto, graph, count = absorbed(x, rows, back)
    assert count == 0
    assert "Reshape" in op_types(graph)
    check_equal(proto, graph, {"x": dense(*map(int, x.split(", ")))})


def test_a_result_that_others_read_keeps_its_shape():
    proto, graph, count = absorbed(
        "2, 3, 8", "6, 8", "2, 3, 6", "(float[p, q, r] y, float[s, v] z)", "y = Relu(u)\nz = Neg(t)"
    )
    assert count == 0
    check_equal(proto, graph, {"x": dense(2, 3, 8)})


def test_the_flat_rows_stay_for_others():
    proto, graph, count = absorbed(
        "2, 3, 8", "6, 8", "2, 3, 6", "(float[p, q, r] y, float[s, v] z)", "y = Relu(u)\nz = Neg(f)"
    )
    assert count == 1
    check_equal(proto, graph, {"x": dense(2, 3, 8)})

"""The planner's choice is carried out and written down; equal problems are planned once."""

import json

import numpy as np
import pytest

from bscompile.dialect import CHOICE_KEY, FOUND_KEY, dense_weight, is_dialect, read_node
from bscompile.formats import BlockSparseMatrix
from bscompile.passes.choose_form import ChooseForm
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.recognise_linear import RecogniseLinear
from tests.passes.helpers import KeepForm, blocky, dense, model_from, op_types, rewritten


class Planner:
    """Takes a given form and remembers what it was asked."""

    def __init__(self, block=None):
        self.block, self.asked, self.steps = block, [], []

    def __call__(self, op, rows, dtype, step=1):
        self.asked.append((op.shape, rows, dtype, op.epilogue))
        self.steps.append(step)
        dense_form = dense_weight(op.weight)
        weight = (
            dense_form if self.block is None
            else BlockSparseMatrix.from_dense(dense_form, self.block)
        )  # fmt: skip
        return KeepForm(weight, template="t", config={"tile": 4}, reason="because")


def choose(text, weights, feeds, planner):
    return rewritten(
        model_from(text, weights), RecogniseLinear(), FuseEpilogues(), ChooseForm(planner),
        feeds=feeds,
    )  # fmt: skip


TEXT = "g (float[{rows}, 8] x) => (float[{rows}, 12] y) {{ h = MatMul(x, w)  y = Relu(h) }}"


@pytest.mark.parametrize("block", [None, (2, 2), (4, 8)])
def test_the_weight_takes_the_chosen_form_and_block(block):
    w = blocky((8, 12))
    planner = Planner(block)
    model = choose(TEXT.format(rows=5), {"w": w}, {"x": dense(5, 8)}, planner)
    (node,) = model.graph
    op = read_node(node)
    assert op.form == ("dense" if block is None else "block_sparse")
    if block:
        assert op.weight.block == block
    np.testing.assert_array_equal(dense_weight(op.weight), w.T)
    assert planner.asked == [((12, 8), 5, np.dtype("float32"), ("relu",))]
    assert json.loads(node.metadata_props[FOUND_KEY])["kind"] == "block"


def test_the_choice_is_written_into_the_node():
    model = choose(TEXT.format(rows=5), {"w": blocky((8, 12))}, {"x": dense(5, 8)}, Planner())
    choice = json.loads(model.graph[0].metadata_props[CHOICE_KEY])
    assert choice["template"] == "t"
    assert choice["config"] == {"tile": 4}
    assert choice["reason"] == "because"
    assert choice["seconds"] < choice["dense_seconds"]
    assert choice["considered"] == [["kept", 1e-6]]


@pytest.mark.parametrize(
    ("declared", "shape", "rows", "step"),
    [("2, 3, 8", (2, 3, 8), 6, 1), ("N, 8", (3, 8), None, 1), ("2, N, 8", (2, 4, 8), None, 2)],
)
def test_rows_are_the_product_of_the_leading_dimensions(declared, shape, rows, step):
    planner = Planner()
    result = declared[:-1] + "12"
    text = f"g (float[{declared}] x) => (float[{result}] y) {{ y = MatMul(x, w) }}"
    choose(text, {"w": blocky((8, 12))}, {"x": dense(*shape)}, planner)
    assert planner.asked[0][1] == rows
    assert planner.steps == [step]


@pytest.mark.parametrize(("batch", "rows"), [("2", 2 * 4 * 3), ("N", None)])
def test_rows_of_a_convolution_are_its_output_positions(batch, rows):
    planner = Planner()
    text = f"g (float[{batch}, 4, 6, 5] x) => (float[{batch}, 8, 4, 3] y) {{ y = Conv(x, w) }}"
    choose(text, {"w": dense(8, 4, 3, 3)}, {"x": dense(2, 4, 6, 5)}, planner)
    assert planner.asked[0][1] == rows


def test_equal_problems_are_planned_once_and_different_ones_apart():
    text = """g (float[3, 8] x) => (float[3, 8] y) {
        a = MatMul(x, w)
        b = MatMul(a, w)
        y = MatMul(b, v)
    }"""
    planner = Planner()
    weights = {"w": blocky((8, 8)), "v": blocky((8, 8), seed=5)}
    model = choose(text, weights, {"x": dense(3, 8)}, planner)
    assert len(planner.asked) == 2
    assert op_types(model) == ["DenseMatMul"] * 3
    assert all(CHOICE_KEY in node.metadata_props for node in model.graph if is_dialect(node))


def test_a_planner_that_keeps_the_weight_changes_no_initializer():
    text = TEXT.format(rows=3)
    model = rewritten(
        model_from(text, {"w": blocky((8, 12))}), RecogniseLinear(),
        ChooseForm(lambda op, rows, dtype, step: KeepForm(op.weight)), feeds={"x": dense(3, 8)},
    )  # fmt: skip
    assert len(model.graph.initializers) == 3

"""The report: what it reads from dialect nodes, its JSON, its tables, measured times."""

from __future__ import annotations

import io
import json

import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

from bscompile.dialect import CHOICE_KEY, FOUND_KEY, ConvGeometry, LinearOp, make_node
from bscompile.errors import ArtifactError
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.passes.base import Note
from bscompile.report import Report
from bscompile.report.build import make_report
from bscompile.report.measured import attach_times
from bscompile.report.tables import duration, quantity, report_view
from bscompile.targets.base import HardwareSpec

HARDWARE = HardwareSpec("a machine", "avx2", (), 2, {"float32": 100.0}, 20, (1,), (1,), 32, 1e-6)
FOUND = {"kind": "block", "block": [4, 4], "density": 0.25, "zeros": 0.75, "reason": "75 % zero"}
CHOICE = {
    "template": "block_sparse_rows",
    "config": {"rows": 16},
    "seconds": 2e-6,
    "dense_seconds": 8e-6,
    "reason": "four times faster",
    "considered": [["block_sparse 4x4", 2e-6], ["dense", 8e-6]],
}


def sparse(out, inner, block):
    dense = np.zeros((out, inner), np.float32)
    dense[: block[0], : block[1]] = 1
    return BlockSparseMatrix.from_dense(dense, block)


def report_of(weight, x_shape, conv=None, metadata=None, notes=()):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g")
    x = ir.Value(name="x", shape=ir.Shape(x_shape), type=ir.TensorType(ir.DataType.FLOAT))
    node = make_node(LinearOp("encoder.fc [1]", weight, (), conv), graph, x)
    if conv:
        node.outputs[0].shape = ir.Shape([x_shape[0], weight.shape[0], 5, 5])
    node.metadata_props.update(metadata or {})
    graph.append(node)
    return make_report(ir.Model(graph, ir_version=10), notes, HARDWARE, typical_rows=32)


def test_a_block_sparse_layer():
    metadata = {FOUND_KEY: json.dumps(FOUND), CHOICE_KEY: json.dumps(CHOICE)}
    report = report_of(sparse(8, 16, (4, 8)), [3, 5, 16], metadata=metadata)
    (layer,) = report.layers
    assert (layer.name, layer.op, layer.shape) == (
        "encoder.fc [1]",
        "BlockSparseMatMul",
        (8, 16),
    )
    assert layer.rows == 15
    assert (layer.trained_block, layer.block) == ((4, 4), (4, 8))
    assert layer.density == 0.25
    assert (layer.dense_flops, layer.flops) == (2 * 15 * 8 * 16, 2 * 15 * 4 * 8)
    assert (layer.dense_bytes, layer.bytes) == (8 * 16 * 4, 4 * 8 * 4 + 4 + 4 * 3)
    assert (layer.dense_seconds, layer.expected_seconds) == (8e-6, 2e-6)
    assert layer.reason == "four times faster"
    assert layer.config == "rows 16"


def test_symbolic_rows_take_the_typical_number():
    assert report_of(sparse(8, 16, (4, 4)), ["batch", 16]).layers[0].rows == 32


def test_a_convolution_counts_output_positions():
    conv = ConvGeometry((2, 2), (1, 1), (0, 0, 0, 0))
    assert report_of(sparse(8, 16, (4, 4)), [3, 4, 6, 6], conv).layers[0].rows == 75


def test_a_kronecker_layer_counts_the_cheaper_order():
    a = np.zeros((2, 3, 5), np.float32)
    a[:, 0, 0] = 1
    layer = report_of(KroneckerSum(a, np.ones((2, 4, 2), np.float32)), [1, 10]).layers[0]
    b_first, a_first = 2 * (10 * 4 + 1 * 4), 2 * (1 * 2 + 12 * 2)
    assert layer.flops == 2 * min(b_first, a_first)
    assert (layer.rank, layer.block, layer.trained_block) == (2, (4, 2), (4, 2))


def test_a_dense_layer_says_what_its_weight_looked_like():
    found = {**FOUND, "kind": "unstructured", "block": [1, 1], "reason": "zeros are scattered"}
    metadata = {FOUND_KEY: json.dumps(found), CHOICE_KEY: json.dumps(CHOICE)}
    layer = report_of(np.ones((8, 16), np.float32), [4, 16], metadata=metadata).layers[0]
    assert layer.trained_block is None
    assert layer.block is None
    assert layer.reason == "four times faster; zeros are scattered"


def test_json_round_trip():
    notes = [Note("FoldConstants", "n", "folded"), Note("Shrink", "m", "why", applied=False)]
    metadata = {FOUND_KEY: json.dumps(FOUND), CHOICE_KEY: json.dumps(CHOICE)}
    for measured in (False, True):
        report = report_of(sparse(8, 16, (4, 8)), [3, 16], metadata=metadata, notes=notes)
        report = report.with_measured([1e-6]) if measured else report
        assert Report.from_json(report.to_json()) == report
    assert [note.applied for note in report.notes] == [True, False]
    assert json.loads(report.to_json())["totals"]["flops"] == report.layers[0].flops


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": [3], "notes": []}', "[" * 10_000])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ArtifactError, match=r"report\.json: not a report"):
        Report.from_json(text)


def show(report, width=200, **options):
    text = io.StringIO()
    Console(file=text, width=width).print(report_view(report, **options))
    return text.getvalue()


def test_the_table_shows_every_layer_and_reason():
    metadata = {FOUND_KEY: json.dumps(FOUND), CHOICE_KEY: json.dumps(CHOICE)}
    notes = [Note("FoldConstants", "n", "folded"), Note("Shrink", "m", "shared", applied=False)]
    report = report_of(sparse(8, 16, (4, 8)), [15, 16], metadata=metadata, notes=notes)
    text = show(report)
    for piece in (
        "encoder.fc [1]",
        "8x16",
        "block 4x4",
        "25.0%",
        "block_sparse 4x8",
        "8 us",
        "2 us",
        "four times faster",
        "refused, shared",
        "FoldConstants 1",
    ):
        assert piece in text, piece
    assert "folded" not in text
    assert "folded" in show(report, notes=True)
    assert "measured" in show(report.with_measured([3e-6]))


def test_a_narrow_table_wraps_and_cuts_nothing():
    metadata = {CHOICE_KEY: json.dumps(CHOICE)}
    report = report_of(sparse(8, 16, (4, 8)), [15, 16], metadata=metadata)
    assert "…" not in show(report, width=60)


def test_times_are_matched_by_order_and_form():
    report = report_of(sparse(8, 16, (4, 8)), [15, 16])
    calls = [("transpose", 9.0), ("block_sparse_matmul1", 0.5), ("softmax", 9.0)]
    matched = attach_times(report, calls)
    assert matched is not None
    assert matched.layers[0].measured_seconds == 0.5
    assert attach_times(report, [("dense_matmul", 0.5)]) is None
    assert attach_times(report, calls * 2) is None


def test_units():
    assert [quantity(v) for v in (7, 1234, 4.718e6, 2e9)] == ["7", "1.23k", "4.72M", "2G"]
    times = [duration(v) for v in (None, 1.5, 0.0123, 4.2e-5, 3e-9)]
    assert times == ["?", "1.5 s", "12.3 ms", "42 us", "3 ns"]

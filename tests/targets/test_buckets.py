"""Symbolic rows: one choice per bucket, one kernel that holds them, weights shared where equal."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bscompile
from bscompile import targets
from bscompile.cli import main
from bscompile.dialect import LinearOp
from bscompile.errors import UsageError
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets.base import Kernel
from bscompile.targets.buckets import BUCKETS, bucket_list, bucket_rows
from bscompile.targets.kernels.code.branches import join
from bscompile.targets.planner import plan
from bscompile.tuning.collect import Collector
from bscompile.tuning.database import Database
from bscompile.tuning.planner import TunedPlanner
from bscompile.tuning.record import OK, TuningRecord, Variant
from bscompile.tuning.variants import all_variants
from tests.tolerance import assert_close
from tests.tuning.conftest import block_sparse, kronecker

FLOAT = np.dtype(np.float32)


@pytest.fixture(scope="module")
def context():
    return replace(targets.resolve("cpu", threads=2), buckets=BUCKETS)


def sized(seed=0, out=256, inner=192, block=16, density=0.2):
    return block_sparse(seed, (out, inner), (block, block), density)


def test_the_typical_rows_keep_today_s_choice_and_every_row_is_served(context):
    op = LinearOp("layer", sized(), ("bias", "gelu"))
    alone = plan(op, None, FLOAT, replace(context, buckets=()))
    choice = plan(op, None, FLOAT, context)
    assert [bucket.rows for bucket in choice.buckets] == list(BUCKETS)
    limits = [bucket.up_to for bucket in choice.buckets]
    assert limits == [2, 16, 64, 362, None]  # geometric means: the nearest by ratio
    typical = choice.buckets[BUCKETS.index(128)]
    assert (typical.template, dict(typical.config)) == (alone.template, dict(alone.config))
    assert (choice.template, choice.seconds) == (alone.template, alone.seconds)
    assert len({bucket.variant for bucket in choice.buckets}) > 1
    assert alone.buckets == ()


def test_what_is_known_or_cannot_branch_has_no_buckets(context):
    op = LinearOp("layer", sized())
    assert plan(op, 128, FLOAT, context).buckets == ()
    still = replace(context, target=replace(context.target, branches=False))
    assert plan(op, None, FLOAT, still).buckets == ()
    assert bucket_rows(still) == (128,)


def test_rows_that_cannot_come_are_not_planned_for(context):
    assert bucket_rows(context, step=100) == (100, 128, 1024)
    assert bucket_rows(replace(context, typical_rows=64), step=197) == (197, 1024)
    choice = plan(LinearOp("layer", sized()), None, FLOAT, context, step=197)
    assert [bucket.rows for bucket in choice.buckets] == [197, 1024]


def test_another_packed_weight_must_be_worth_its_bytes(context):
    for weight in (sized(), sized().to_dense(), kronecker()):
        choice = plan(LinearOp("layer", weight), None, FLOAT, context)
        for bucket in choice.buckets:
            here = replace(context, typical_rows=bucket.rows, buckets=())
            best = plan(LinearOp("layer", weight), None, FLOAT, here)
            assert bucket.seconds <= 1.1 * best.seconds
            assert bucket.dense_seconds == best.dense_seconds


def test_factors_that_are_rounded_are_not_merged_for_some_rows_only(context):
    narrow = replace(context, hardware=context.hardware.extended("bfloat16"))
    choice = plan(LinearOp("layer", kronecker()), None, np.dtype("bfloat16"), narrow)
    assert len({bucket.form == "kronecker" for bucket in choice.buckets}) == 1


def test_the_user_s_buckets_are_checked():
    assert bucket_list(None) == BUCKETS
    assert bucket_list([64, 1, 64]) == (1, 64)
    for wrong in ([0], [-1], range(1, 100)):
        with pytest.raises(UsageError, match="positive numbers of rows"):
            bucket_list(wrong)


def test_kernels_that_take_x_differently_are_not_joined(context):
    op = LinearOp("layer", sized())
    template = context.target.template("block_sparse_outputs")
    problem = targets.base.problem_of(op, None, FLOAT)
    config = template.space(problem, context.hardware)[0]
    kernel = template.build(problem, op.weight, config, context.hardware)
    with pytest.raises(ValueError, match="alike"):
        join([kernel, Kernel(kernel.code, kernel.operands, "bfloat16")], [4])
    joined = join([kernel, kernel], [4])
    assert [name for name, _ in joined.operands] == [name for name, _ in kernel.operands]


# ---------------------------------------------------------------- tuning


def test_each_bucket_is_a_problem_of_its_own(context):
    collector = Collector(context)
    collector(LinearOp("layer", sized()), None, FLOAT, 1)
    assert sorted(layer.problem.rows for layer in collector.layers) == list(BUCKETS)
    assert [layer.problem.rows for layer in collector.layers if not layer.aside] == [128]


def records_of(layer, fastest):
    """The dense form and a winner, as a run would leave them."""
    variants = all_variants(layer)
    dense = next(v for v in variants if v.form == "dense")
    for variant, seconds in ((dense, 1e-3), (fastest, 1e-6)):
        yield TuningRecord(layer.key, variant, OK, (seconds,), 1e-7, final=True, run="1")


def test_measured_choices_are_taken_bucket_by_bucket(context):
    op = LinearOp("layer", sized())
    collector = Collector(context)
    collector(op, None, FLOAT, 1)
    database, wanted = Database(), {}
    for layer in collector.layers:
        own = [v for v in all_variants(layer) if v.label == "block_sparse 16x16"]
        wanted[layer.problem.rows] = own[-1]
        database.add(records_of(layer, own[-1]))
    planner = TunedPlanner(database, context)
    choice = planner(op, None, FLOAT)
    assert choice.tuned
    assert {layer.key for layer in collector.layers} == set(planner.used)
    for bucket in choice.buckets:
        variant = Variant(bucket.form, bucket.block, bucket.template, bucket.config)
        assert variant == wanted[bucket.rows]
        assert bucket.seconds == 1e-6
    # One bucket alone does not make a tuned layer.
    part = Database()
    part.add(records_of(collector.layers[0], wanted[collector.layers[0].problem.rows]))
    assert not TunedPlanner(part, context)(op, None, FLOAT).tuned


# ---------------------------------------------------------------- whole models


def model_of(tmp_path, weights, leading=("n",)):
    """x [.., k] through one MatMul and Relu per weight [out, in]."""
    nodes, last = [], "x"
    for i in range(len(weights)):
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
        last = f"r{i}"
    info = helper.make_tensor_value_info
    arrays = [numpy_helper.from_array(w.T.copy(), f"w{i}") for i, w in enumerate(weights)]
    x = info("x", TensorProto.FLOAT, [*leading, weights[0].shape[1]])
    y = info(last, TensorProto.FLOAT, [*leading, weights[-1].shape[0]])
    graph = helper.make_graph(nodes, "chain", [x], [y], arrays)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path


SIZES = (1, 2, 3, 8, 16, 17, 64, 65, 128, 362, 363, 500)


@pytest.mark.parametrize("dtype", ["float32", "bf16", "int8"])
def test_an_artifact_is_right_for_every_number_of_rows(tmp_path, dtype):
    weights = [sized().to_dense(), kronecker_layer(), sized(2, 192, 512, 8).to_dense()]
    weights = weights if dtype == "float32" else weights[:1]  # their code takes long to compile
    path = model_of(tmp_path, weights)
    compiled = bscompile.build(path, threads=2, dtype=dtype)
    assert any(len({_code(b) for b in layer.buckets}) > 1 for layer in compiled.report.layers)
    model = bscompile.load(compiled.save(tmp_path / "model.bsc"))
    rng = np.random.default_rng(1)
    for rows in SIZES:
        x = rng.standard_normal((rows, 192)).astype(np.float32)
        wanted = x.astype(np.float64)
        for weight in weights:
            wanted = np.maximum(wanted @ weight.T.astype(np.float64), 0)
        got = model.run({"x": x})[f"r{len(weights) - 1}"]
        if dtype == "float32":
            assert_close(got, wanted, "float32", k=512)
        else:  # a wrong row would be off by its whole size
            error = np.abs(got - wanted).max(axis=1) / np.abs(wanted).max()
            assert error.max() < 0.05


def kronecker_layer(out=512, inner=256):
    """W [512, 256] of one term with 8x8 blocks, a fifth of them live."""
    rng = np.random.default_rng(3)
    a = rng.standard_normal((1, out // 8, inner // 8)) * (rng.random((out // 8, inner // 8)) < 0.2)
    b = rng.standard_normal((1, 8, 8))
    return KroneckerSum(a.astype(np.float32), b.astype(np.float32)).to_dense()


def _code(bucket):
    return bucket.form, bucket.block, bucket.template, bucket.config


def test_weights_are_stored_once_where_forms_agree(tmp_path):
    weight = sized(out=1024, inner=768, density=0.1)
    path = model_of(tmp_path, [weight.to_dense()])
    compiled = bscompile.build(path, threads=2)
    (layer,) = compiled.report.layers
    assert {bucket.block for bucket in layer.buckets} == {(16, 16)}
    assert len({_code(bucket) for bucket in layer.buckets}) > 1
    stored = sum(array.nbytes for array in compiled.weights.values())
    assert stored <= 1.2 * weight.nbytes


def test_several_forms_of_one_layer_in_one_kernel(tmp_path, monkeypatch):
    """Dense for many rows, factors for some, two block sizes for others: all in one call."""
    from bscompile.targets import planner

    factors = kronecker_layer()
    forms = {1: "kronecker 8x8", 8: "block_sparse 8x8", 32: "block_sparse 16x16", 128: "dense",
             1024: "kronecker 8x8"}  # fmt: skip

    def chosen(op, m, dtype, context, admits=None):
        wanted = forms[context.typical_rows]
        problem = targets.base.problem_of(op, m, dtype, context.typical_rows)

        def only(problem, template, config):
            block = f" {problem.block[0]}x{problem.block[1]}" if problem.form != "dense" else ""
            return f"{problem.form}{block}" == wanted

        assert problem.form == "kronecker"
        return planned(op, m, dtype, context, only) if admits is None else None

    planned = planner.plan_rows
    monkeypatch.setattr(planner, "plan_rows", chosen)
    monkeypatch.setattr("bscompile.tuning.planner.plan_rows", chosen)
    compiled = bscompile.build(model_of(tmp_path, [factors]), threads=2)
    (layer,) = compiled.report.layers
    assert [bucket.form for bucket in layer.buckets] == [f.split()[0] for f in forms.values()]
    assert layer.form == "dense"
    model = bscompile.load(compiled.save(tmp_path / "model.bsc"))
    rng = np.random.default_rng(1)
    for rows in SIZES:
        x = rng.standard_normal((rows, 256)).astype(np.float32)
        wanted = np.maximum(x.astype(np.float64) @ factors.T.astype(np.float64), 0)
        assert_close(model.run({"x": x})["r0"], wanted, "float32", k=256)


def test_inspect_shows_what_runs_for_how_many_rows(tmp_path, capsys):
    path = model_of(tmp_path, [sized().to_dense()])
    assert main(["inspect", str(path), "--threads", "2", "--buckets", "1,100"]) == 0
    text = capsys.readouterr().out
    assert "By rows" in text
    assert "1 to 10" in text
    assert "114 and more" in text
    assert main(["inspect", str(path), "--buckets", "none", "--json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    assert layer["buckets"] == []
    for wrong in ("1,x", "0", ""):
        assert main(["inspect", str(path), "--buckets", wrong]) == 2
        assert "--buckets" in capsys.readouterr().err


def test_a_sequence_of_fixed_length_plans_for_whole_sequences(tmp_path):
    path = model_of(tmp_path, [sized().to_dense()], leading=("batch", 64))
    compiled = bscompile.build(path, threads=2)
    (layer,) = compiled.report.layers
    assert [bucket.rows for bucket in layer.buckets] == [64, 128, 1024]
    model = bscompile.load(compiled.save(tmp_path / "model.bsc"))
    x = np.random.default_rng(0).standard_normal((3, 64, 192)).astype(np.float32)
    wanted = np.maximum(x.astype(np.float64) @ sized().to_dense().T, 0)
    assert_close(model.run({"x": x})["r0"], wanted, "float32", k=192)


def test_blocks_stay_whole_matrices():
    """The reblocked weights of the forms above are the same matrix."""
    from bscompile.dialect.forms import in_form

    weight = sized()
    dense = weight.to_dense()
    for form, block in (("dense", (1, 1)), ("block_sparse", (8, 32)), ("block_sparse", (5, 7))):
        for source in (weight, dense):
            made = in_form(source, form, block)
            got = made.to_dense() if isinstance(made, BlockSparseMatrix) else made
            np.testing.assert_array_equal(got, dense)

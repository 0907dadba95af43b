"""tune, build with a warm database, and estimate, from the command line."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bscompile.cli import main
from bscompile.tuning import session
from bscompile.tuning.database import Database
from tests.tuning.conftest import TableMeasurer, block_sparse


@pytest.fixture
def model(tmp_path):
    """x [n, 48] -> 64 -> 48, both layers block-sparse in 8x8."""
    weights = {
        "w1": block_sparse(shape=(64, 48)).to_dense().T.copy(),
        "w2": block_sparse(shape=(48, 64), seed=2).to_dense().T.copy(),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]

    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "two",
        [info("x", ["n", 48])],
        [info("y", ["n", 48])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture
def table(monkeypatch):
    """A machine on which 4x4 blocks are fastest."""
    made = []

    def answer(variant):
        return {"dense": 1e-4, "block_sparse 4x4": 1e-6}.get(variant.label, 5e-5)

    def make(*_arguments):
        made.append(TableMeasurer(answer))
        return made[-1]

    monkeypatch.setattr(session, "ChildMeasurer", make)
    return made


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_tune_then_build_with_a_warm_database(model, table, run, tmp_path):
    db, page, artifact = tmp_path / "db.jsonl", tmp_path / "page.html", tmp_path / "out.bsc"
    rows = ("--buckets", "64")
    code, out, err = run("tune", model, *rows, "--db", db, "--trials", 32, "--report", page)
    assert code == 0
    assert "block_sparse 4x4" in out
    assert "4 of 4 distinct problems tuned, 4 of them now" in err
    assert "of roofline" in err
    assert "whole model" in err
    assert page.read_text().startswith("<!doctype html>")

    tuned = db.read_text()
    code, out, err = run("tune", model, *rows, "--db", db, "--trials", 32, "--json")
    result = json.loads(out)
    assert [layer["winner"] for layer in result["layers"]] == ["block_sparse 4x4"] * 4
    assert [layer["rows"] for layer in result["layers"]] == [64, 128, 64, 128]
    assert db.read_text() == tuned
    assert len(table) == 1

    code, out, err = run("build", model, *rows, "--db", db, "-o", artifact)
    assert code == 0
    assert "2 of 2 layers tuned" in err
    assert err.count(", tuned") == 2  # both layers alike, told once
    assert "100.00 times as fast as dense" in err
    assert run("verify", artifact, model)[0] == 0

    # The records travel with the artifact, to whoever has the same machine.
    other = tmp_path / "other.jsonl"
    code, out, err = run("tune", model, *rows, "--db", other, "--merge", artifact)
    assert "nothing was left to tune" in err
    assert len(Database(other)) == len(Database(db))


def test_a_build_without_records_says_so(model, run, tmp_path):
    code, _, _ = run("inspect", model)
    assert code == 0
    code, out, _ = run("inspect", model, "--json")
    assert [layer["tuned"] for layer in json.loads(out)["layers"]] == [False, False]


def test_ctrl_c_keeps_what_was_found(model, monkeypatch, run, tmp_path):
    count = iter(range(100))

    def answer(variant):
        if next(count) == 3:
            raise KeyboardInterrupt
        return 1e-5

    measurer = TableMeasurer(answer)
    monkeypatch.setattr(session, "ChildMeasurer", lambda *_: measurer)
    db = tmp_path / "db.jsonl"
    code, _, err = run("tune", model, "--db", db, "--report", tmp_path / "page.html")
    assert code == 130
    assert "interrupted" in err
    assert len(Database(db)) == 3
    assert measurer.closed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["db.jsonl", "model.onnx"]


def test_damage_is_told(model, table, run, tmp_path):
    db = tmp_path / "db.jsonl"
    db.write_text("broken\n")
    code, _, err = run("tune", model, "--db", db, "--trials", 2, "--buckets", "none")
    assert code == 0
    assert "db.jsonl:1: skipped" in err.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rpc", "nowhere"], "HOST:PORT"),
        (["--rpc", "host:1"], "needs --key"),
        (["--target", "cdua"], "unknown target"),
        (["--trials", "1"], "--trials"),
        (["--merge", "absent.jsonl"], "does not exist"),
    ],
)
def test_wrong_usage(model, run, arguments, message):
    code, out, err = run("tune", model, *arguments)
    assert code in (2, 5)
    assert message in err
    assert out == ""


def test_an_unwritable_report_is_refused_before_the_work(model, table, run, tmp_path):
    code, _, err = run("tune", model, "--report", tmp_path / "no" / "page.html")
    assert code == 6
    assert "page.html" in err
    assert table == []


def test_without_optuna_it_says_what_to_install(model, monkeypatch, run, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = run("tune", model, "--db", tmp_path / "db")
    assert code == 2
    assert "bscompile[tune]" in err


def test_estimate_tells_every_form(run):
    arguments = ["--shape", "96x64", "--block", "8x8", "--rank", 2, "--density", 0.2, "--rows", 32]
    code, out, _ = run("estimate", *arguments, "--json")
    assert code == 0
    result = json.loads(out)
    labels = {form["label"] for form in result["forms"]}
    assert labels >= {"dense", "block_sparse 8x8", "kronecker 8x8"}
    assert 0 <= result["break_even_density"] <= 1
    code, out, _ = run("estimate", *arguments)
    assert "times as fast as dense" in out
    assert "break-even" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "96", "--block", "8x8"], "--shape 96: two positive numbers"),
        (["--shape", "96x64", "--block", "0x8"], "--block 0x8"),
        (["--shape", "95x64", "--block", "8x8", "--rank", 1], "8x8 in 95x64"),
        (["--shape", "96x64"], "--block"),
        (["--shape", "999999x999999", "--block", "8x8"], "at most"),
        (["--shape", "96x64", "--block", "8x8", "--density", 2], "--density"),
    ],
)
def test_estimate_refuses(run, arguments, message):
    code, _, err = run("estimate", *arguments)
    assert code == 2
    assert message in err


def test_the_shape_may_be_large_only_on_purpose(run):
    code, _, err = run("estimate", "--shape", "99999999x1", "--block", "1x1")
    assert code == 2
    assert "two positive numbers" in err

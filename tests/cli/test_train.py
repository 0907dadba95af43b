import csv
import json
import re
import sys

import onnx
import pytest
import torch

from bscompile.cli import main

SHORT = ["--epochs", "3", "--finetune-epochs", "1"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other cost more than these models
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_trains_writes_and_reports(folder, capsys):
    arguments = ["--json", "--log", "l.csv", "--plot", "p.png", "-o", "m.onnx", "--block", "8x4"]
    assert main(["train", *SHORT, *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sparsity"] == 0.75
    assert told["accuracy"] > 0.3
    onnx.checker.check_model(onnx.load("m.onnx"))
    rows = list(csv.DictReader((folder / "l.csv").read_text().splitlines()))
    assert [row["phase"] for row in rows] == ["sparsify"] * 3 + ["finetune"]
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in folder.iterdir()) == ["l.csv", "m.onnx", "p.png"]


@pytest.mark.parametrize("method", ["l1", "dense", "magnitude", "group-lasso", "elastic", "rigl"])
def test_every_method_runs(folder, method, capsys):
    assert main(["train", *SHORT, "-q", "--method", method, "-o", "m.onnx"]) == 0
    assert capsys.readouterr().out.strip() == "m.onnx"


def test_going_on_from_a_checkpoint(folder, capsys):
    arguments = ["train", *SHORT, "--json", "--checkpoint", "c.safetensors", "-o", "m.onnx"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert main([*arguments, "--rank", "2"]) == 2
    assert "checkpoint of another model: 0.A was [4, 16, 8], now [2, 16, 8]" in (
        capsys.readouterr().err
    )


def test_selection_says_what_survived(folder, capsys):
    options = ["--select", "2,8", "--cost", "flops", "--epochs", "20", "--finetune-epochs", "0"]
    assert main(["train", *options, "-o", "m.onnx"]) == 0
    assert "selected: 2 layers: 8x8" in capsys.readouterr().err


@pytest.mark.slow
def test_teacher_and_choices_of_each_layer_are_told(folder, capsys):
    options = ["--distill", "--select", "2,8", "--per-layer", "--epochs", "20"]
    assert main(["train", *options, "--finetune-epochs", "0", "-o", "m.onnx"]) == 0
    said = capsys.readouterr().err
    assert "teacher: accuracy 9" in said
    assert "selected: 0: 8x8" in said
    assert "selected: 2: 8x8" in said


def test_selection_by_latency_says_what_each_block_costs(folder, capsys):
    pytest.importorskip("tvm")
    options = ["--select", "2,8", "--cost", "latency", "--rows", "64", "--epochs", "20"]
    assert main(["train", *options, "--finetune-epochs", "0", "-o", "m.onnx"]) == 0
    said = capsys.readouterr().err
    told = dict(re.findall(r"\[128, 64\] in (\d)x\d: ([\d.]+) us on cpu", said))
    assert float(told["2"]) > float(told["8"]) > 0
    assert "selected: 2 layers: 8x8" in said


def test_the_methods_offered_are_those_there_are():
    from bscompile.cli.train import METHODS as OFFERED
    from bscompile.models.recipe import METHODS

    assert tuple(METHODS) == OFFERED


def test_layers_with_another_block_are_named(folder, capsys):
    options = ["--model", "lenet5", "--epochs", "1", "--finetune-epochs", "0"]
    assert main(["train", *options, "-o", "m.onnx"]) == 0
    said = capsys.readouterr().err
    assert "fc2: block 8x8 does not divide [84, 120]; 7x8 taken, rank 4" in said
    assert "features.4" not in said.partition("layer ")[0]
    assert main(["train", *options, "--convolutions", "-o", "m.onnx"]) == 0
    said = capsys.readouterr().err
    assert "features.4: block 8x8 does not divide [16, 150]; 8x6 taken, rank 4" in said


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "mpl"], "unknown model 'mpl'"),
        (["--data", "mnist"], "unknown data set 'mnist'"),
        (["--block", "8by8"], "block: wanted OUTxIN such as 8x8, got '8by8'"),
        (["--block", "256x256"], "sparsity 0.75 is wanted, but the model has no factorized layer"),
        (["--sparsity", "1"], "1.0 is not in the range 0<=x<1"),
        (["--select", "8"], "selection needs two different blocks or more"),
        (["--method", "rigl", "--select", "4,8"], "--select needs a factorized method"),
        (["--select", "4,8", "--cost", "latency", "--target", "cdua"], "unknown target 'cdua'"),
        (["--learning-rate", "1e30"], "training: loss is nan"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, line):
    assert main(["train", *SHORT, *arguments, "-o", "m.onnx"]) in (1, 2, 5)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in said
    assert not (folder / "m.onnx").exists()


def test_without_torch_the_extra_is_named(folder, capsys, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("bscompile.models")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["train", "-o", "m.onnx"]) == 2
    assert "torch, which is not installed (pip install 'bscompile[train]')" in (
        capsys.readouterr().err
    )

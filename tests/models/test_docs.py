"""What docs/training.md shows runs as it stands there."""

import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import bscompile.models

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture
def few_rows(monkeypatch):
    """Digits, but so few of them that fifty epochs take a second."""
    whole = bscompile.models.load

    def load(name, seed=0):
        data = whole(name, seed)
        return replace(data, x_train=data.x_train[:128], y_train=data.y_train[:128])

    monkeypatch.setattr(bscompile.models, "load", load)


def test_snippets_run_one_after_the_other(few_rows, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tvm")  # one asks its cost model
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    blocks = [block for block in blocks if "Callback)" not in block]  # test_callbacks runs these
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    assert "parameters in all" in said
    assert "2 layers: " in said
    assert names["result"].sparsity == 0.75
    onnx.checker.check_model(onnx.load("model.onnx"))

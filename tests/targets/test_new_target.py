"""Adding a target is one folder and one line: the example of the page, as a stranger adds it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import bscompile
from bscompile import targets
from bscompile.artifact import REPORT, read_artifact
from bscompile.cli import main
from bscompile.report import Report
from bscompile.verification import verify

PAGE = Path(bscompile.__file__).parents[1] / "docs" / "writing_a_target.md"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The folder, and the line."""
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "TARGET = Target(" in block
    )
    folder = tmp_path / "target_of_mine"
    folder.mkdir()
    (folder / "__init__.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(targets.TARGETS, "mine", "target_of_mine")


@pytest.mark.usefixtures("mine")
def test_the_example_is_a_whole_target(tmp_path, capsys):
    rng = np.random.default_rng(0)
    large = rng.random((8, 8)) < 0.1
    large[0, 0] = True
    live = np.kron(large, np.ones((2, 2))) * (rng.random((16, 16)) < 0.9)  # trained in 16x16
    weight = rng.standard_normal((256, 256)) * np.kron(live, np.ones((16, 16)))
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[64, 256] x) => (float[64, 256] y) '
        "{ y = MatMul(x, w) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    model, out = tmp_path / "model.onnx", tmp_path / "model.bsc"
    onnx.save(proto, model)
    assert main(["targets"]) == 0
    assert "mine: processors that take blocks of 32x32" in capsys.readouterr().out
    assert main(["build", str(model), "--target", "mine", "-o", str(out)]) == 0
    assert verify(out, model, samples=1).passed
    artifact = read_artifact(out)
    assert artifact.manifest.target == "mine"
    (built,) = Report.from_json(artifact.members[REPORT]).layers
    assert (built.form, tuple(built.block)) == ("block_sparse", (32, 32))


@pytest.mark.usefixtures("mine")
def test_a_name_that_is_nearly_right(tmp_path, capsys):
    assert main(["build", str(tmp_path / "m.onnx"), "--target", "mien"]) != 0
    assert "mine" in capsys.readouterr().err

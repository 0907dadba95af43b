"""The systolic target: its manifest, its choice of blocks, its words when something is amiss."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest

from bscompile.devices import systolic as simulator
from bscompile.dialect import LinearOp
from bscompile.errors import TargetError
from bscompile.formats import BlockSparseMatrix
from bscompile.targets import get_target, resolve
from bscompile.targets.base import problem_of
from bscompile.targets.planner import plan
from bscompile.targets.systolic.templates import array_blocks
from tests.targets.systolic.device import needs_simulator

INT8 = np.dtype(np.int8)


def layer(block, density=0.1, shape=(256, 256)):
    rng = np.random.default_rng(0)
    live = rng.random((shape[0] // block, shape[1] // block)) < density
    weight = rng.standard_normal(shape) * np.kron(live, np.ones((block, block)))
    weight = BlockSparseMatrix.from_dense(weight.astype(np.float32), (block, block))
    return LinearOp("layer", weight)


@pytest.mark.parametrize(("variant", "size"), [("", 16), (":8", 8), (":16", 16), (":32", 32)])
def test_the_array_runs_blocks_of_its_own_size(variant, size):
    """A layer trained in smaller blocks is merged, with fill-in; the fewest cycles win."""
    op = layer(4, density=0.01)
    choice = plan(op, 64, INT8, resolve(f"systolic{variant}", 1))
    assert choice.weight.block == (size, size)
    assert choice.template == "array_block_sparse"
    assert choice.config == {"array": size}
    merged = op.weight.reblock((size, size))
    assert choice.seconds < choice.dense_seconds
    blocks = max(merged.block_rows, merged.nnzb)
    assert array_blocks(problem_of(LinearOp("", merged), 64, INT8), size) == blocks


def test_merging_that_fills_everything_stays_dense():
    choice = plan(layer(4, density=0.2), 64, INT8, resolve("systolic:32", 1))
    assert choice.template == "array_dense"


def test_sides_that_the_array_does_not_divide_run_too():
    matrix = layer(4, density=0.02, shape=(96, 96)).weight.reblock((12, 6))
    choice = plan(LinearOp("layer", matrix), 64, INT8, resolve("systolic:8", 1))
    assert choice.template == "array_block_sparse"
    exact = matrix.reblock((8, 8)).nnzb
    assert array_blocks(problem_of(LinearOp("", matrix), 64, INT8), 8) >= exact


def test_float_layers_stay_on_the_host():
    choice = plan(layer(8), 64, np.dtype(np.float32), resolve("systolic", 1))
    assert not choice.template.startswith("array")
    assert "array_dense" in get_target("systolic").places
    assert choice.template not in get_target("systolic").places


def test_unknown_sizes_are_refused():
    with pytest.raises(TargetError, match=r"unknown variant '64' of target systolic .*8"):
        resolve("systolic:64")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "verilator" else tool)
    here = get_target("systolic").detect()
    assert here.compiles
    assert not here.runs
    assert here.install == "verilator"


def test_a_missing_simulator_is_an_error_of_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "verilator" else tool)
    with pytest.raises(TargetError, match=r"needs verilator.*apt-get install verilator"):
        simulator.open_driver(8)


def test_a_broken_build_says_why(monkeypatch, tmp_path):
    sources = tmp_path / "systolic"
    shutil.copytree(simulator.SOURCES, sources)
    with (sources / "rtl" / "systolic.sv").open("a") as file:
        file.write("module\n")
    monkeypatch.setattr(simulator, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if simulator.missing_packages():
        pytest.skip("verilator is not installed")
    with pytest.raises(TargetError, match=r"cannot be built: .*syntax error"):
        simulator.build(8)
    assert not list(tmp_path.glob("bscompile/*.so"))


def test_another_driver_takes_the_simulators_place(monkeypatch, tmp_path):
    """What a vendor does: a library with the four functions, named in the environment."""
    path = tmp_path / "libc-like.so"
    path.write_bytes(b"not a library")
    monkeypatch.setenv(simulator.DRIVER_VARIABLE, str(path))
    with pytest.raises(TargetError, match=r"libc-like.so: not a driver of a 8x8 array"):
        simulator.open_driver(8)


@needs_simulator
def test_a_driver_is_built_once(tmp_path, monkeypatch):
    path = simulator.build(8)
    monkeypatch.setattr(simulator, "_verilate", lambda *_: pytest.fail("built again"))
    assert simulator.build(8) == path
    assert ctypes.CDLL(str(path))[simulator.symbol(8, "open")]() == 0


def test_the_teaching_page_names_every_file():
    page = (Path(simulator.__file__).parents[2] / "docs" / "writing_a_target.md").read_text()
    files = [path for path in simulator.SOURCES.rglob("*.*") if path.suffix != ".pyc"]
    assert len(files) > 10
    assert [path.name for path in files if path.name not in page] == []

"""What a user can get wrong about a target: one line, a code, and nothing written."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import onnx
import pytest

from bscompile.cli import main
from bscompile.cli.plan import DTYPES, SPELLINGS
from bscompile.devices import opencl as opencl_device
from bscompile.devices import systolic as simulator
from bscompile.targets import native
from bscompile.verification import verify
from tests.targets.opencl.adapter import missing_device
from tests.targets.static_running import missing, sparse_mlp

#: (target, dtype that it lacks, what it has)
LACKING = [
    ("cpu:aarch64-sve", "fp16", "float32 or int8"),
    ("cpu:riscv64", "fp16", "float32 or bfloat16 or int8"),
    ("cpu:riscv64-vla", "bf16", "float32 or int8"),
    ("cpu", "tf32", "float32 or bfloat16 or float16 or int8"),
    ("hexagon", "fp16", "float32 or bfloat16 or int8"),
    ("opencl:any", "int8", "float32"),
    ("webgpu", "bf16", "float32"),
    ("metal", "int8", "float32"),
    ("rocm", "bf16", "float32"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(sparse_mlp(), path)
    return path


def refused(capsys, *words):
    """The one line that a command says."""
    code = main([str(word) for word in words])
    told = capsys.readouterr()
    assert code not in (0, 70), told  # 70 is a bug of ours
    assert told.out == ""
    (line,) = (line for line in told.err.splitlines() if line.startswith("bscompile: "))
    return line.removeprefix("bscompile: ")


@pytest.mark.parametrize(("target", "dtype", "known"), LACKING)
def test_a_dtype_that_it_lacks(target, dtype, known, model, tmp_path, capsys):
    out = tmp_path / "model.bsc"
    line = refused(capsys, "build", model, "--target", target, "--dtype", dtype, "-o", out, "-q")
    assert f"target {target} has no kernel for " in line
    assert f"(build with --dtype {known}" in line
    assert {*known.split(" or ")} <= {*DTYPES, *SPELLINGS}  # what a hint names may be typed
    assert not out.exists()


@pytest.mark.parametrize("target", ["opencl:any", "webgpu", "metal", "rocm"])
def test_a_length_that_is_open(target, tmp_path, capsys):
    path, out = tmp_path / "open.onnx", tmp_path / "model.bsc"
    onnx.save(sparse_mlp(rows="batch"), path)
    line = refused(capsys, "build", path, "--target", target, "-o", out, "-q")
    assert f"target {target} needs fixed shapes" in line
    assert "--dim batch=" in line
    assert not out.exists()
    assert main(["inspect", str(path), "--target", target, "--dim", "batch=1"]) == 0


def test_half_precision_on_a_device_without_it(model, tmp_path, capsys):
    out = tmp_path / "model.bsc"
    words = ["build", str(model), "--target", "opencl:any", "--dtype", "fp16", "-o", str(out)]
    assert main(words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "cl_khr_fp16" in line]
    assert len(told) == 1
    assert "any OpenCL device" in told[0]
    assert main([*words, "--dtype", "float32"]) == 0
    assert "cl_khr_fp16" not in capsys.readouterr().err


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    """No program on the path, no optional package, nothing in the cache."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native.machines, "find_zig", list)
    for name in ("pyopencl", "wgpu"):
        monkeypatch.setitem(sys.modules, name, None)
    for cached in (opencl_device.find, opencl_device.limits):
        cached.cache_clear()
    yield
    for cached in (opencl_device.find, opencl_device.limits):
        cached.cache_clear()


#: (target, why it cannot be tried here, the package that its line names to run an artifact)
ARTIFACTS = [
    ("cpu:aarch64", partial(missing, "aarch64"), "apt-get install qemu-user"),
    ("cpu:riscv64-vla", partial(missing, "riscv64"), "apt-get install qemu-user"),
    ("hexagon", partial(missing, "hexagon"), "apt-get install qemu-user"),
    ("opencl:any", str, "pip install 'bscompile[opencl]'"),
    ("webgpu", str, "pip install 'bscompile[webgpu]'"),
    ("systolic", str, "apt-get install verilator"),
]


@pytest.fixture(scope="module")
def artifacts(model, tmp_path_factory):
    """Target -> its artifact, made while everything is installed."""
    folder, made = tmp_path_factory.mktemp("artifacts"), {}
    for number, (target, reason, _) in enumerate(ARTIFACTS):
        if not reason():
            made[target] = folder / f"{number}.bsc"
            dtype = "int8" if target == "systolic" else "float32"
            options = ["--target", target, "--dtype", dtype, "-o", str(made[target]), "-q"]
            assert main(["build", str(model), *options]) == 0
    return made


@pytest.mark.parametrize("target", [target for target, *_ in ARTIFACTS])
def test_an_artifact_without_what_runs_it(target, artifacts, nothing_installed, model, capsys):
    if target not in artifacts:
        pytest.skip("it cannot be built here")
    capsys.readouterr()
    package = next(package for name, _, package in ARTIFACTS if name == target)
    assert package in refused(capsys, "verify", artifacts[target], model)


@pytest.mark.parametrize(
    ("target", "stand_in"),
    [("cpu:aarch64", "qemu-aarch64 max"), ("hexagon", "qemu-hexagon")],
)
def test_an_emulator_is_named(target, stand_in, artifacts, model, tmp_path, capsys):
    """Nobody takes an emulated processor for the real one: each command says it in one line."""
    if target not in artifacts:
        pytest.skip("it cannot be built here")
    np.save(tmp_path / "x.npy", np.zeros((3, 64), np.float32))
    for words in (
        ("run", artifacts[target], "--input", tmp_path / "x.npy"),
        ("verify", artifacts[target], model, "--samples", "1"),
        ("bench", artifacts[target], "--seconds", "0.1"),
    ):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        told = [line for line in capsys.readouterr().err.splitlines() if "run by" in line]
        assert told == [f"run by {stand_in}, whose time says nothing of the device it is made for"]


@pytest.mark.skipif(bool(missing_device()), reason=missing_device() or "it is here")
def test_a_device_stands_in_for_nothing(artifacts, model):
    assert verify(artifacts["opencl:any"], model, samples=1).stand_in == ""


@pytest.mark.parametrize(
    ("target", "package"),
    [
        ("cpu:aarch64", "gcc-aarch64-linux-gnu"),
        ("cpu:aarch64-sme", "gcc-aarch64-linux-gnu"),
        ("cpu:riscv64", "gcc-riscv64-linux-gnu"),
        ("hexagon", "pip install ziglang"),
        ("opencl", "pip install 'bscompile[opencl]'"),
    ],
)
def test_a_build_without_its_tools(target, package, nothing_installed, model, tmp_path, capsys):
    out = tmp_path / "model.bsc"
    line = refused(capsys, "build", model, "--target", target, "-o", out, "-q")
    assert package in line
    assert not out.exists()


def test_an_array_that_there_is_not(model, tmp_path, capsys):
    line = refused(capsys, "build", model, "--target", "systolic:64", "-o", tmp_path / "m.bsc")
    assert "unknown variant '64' of target systolic" in line
    assert all(str(size) in line for size in simulator.SIZES)

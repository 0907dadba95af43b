"""Whole models: int8 layers on the array, the rest on the host, from ONNX to the answer."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from rich.console import Console

import bscompile
from bscompile.devices import systolic as simulator
from bscompile.errors import ArtifactError, TargetError
from bscompile.report import Report
from bscompile.report.tables import report_view
from tests.targets.systolic.device import needs_simulator

DIMENSIONS = (48, 96, 64, 10)


def mlp(tmp_path, block=8, density=0.15):
    """Three layers with Relu between and Softmax behind; the first two have zero blocks."""
    rng = np.random.default_rng(0)
    nodes, initializers, x = [], [], "x"
    for i, (k, n) in enumerate(pairwise(DIMENSIONS)):
        weight = rng.standard_normal((n, k)) / np.sqrt(k)
        if i < 2:
            live = rng.random((n // block, k // block)) < density
            live[:, 0] |= ~live.any(axis=1)  # no dead outputs: the shapes stay
            live[0] |= ~live.any(axis=0)
            weight *= np.kron(live, np.ones((block, block)))
        for name, array in (("w", weight), ("b", rng.standard_normal(n))):
            initializers.append(numpy_helper.from_array(array.astype(np.float32), f"{name}{i}"))
        nodes.append(helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [f"y{i}"], f"fc{i}", transB=1))
        x = f"r{i}"
        nodes.append(helper.make_node("Relu" if i < 2 else "Softmax", [f"y{i}"], [x]))
    ends = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("x", DIMENSIONS[0]), (x, DIMENSIONS[-1]))
    )
    first, last = ends
    graph = helper.make_graph(nodes, "mlp", [first], [last], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "mlp.onnx"
    onnx.save(model, path)
    return path


def samples(rows=20):
    return np.random.default_rng(1).standard_normal((rows, DIMENSIONS[0])).astype(np.float32)


def answer(path, x):
    (y,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    return y


def build(path, target="systolic:8", **options):
    goal = path.with_suffix(".bsc")
    return bscompile.build(path, target, dtype="int8", output=goal, **options), goal


def test_inspect_shows_the_partition(tmp_path):
    report = bscompile.inspect(mlp(tmp_path), target="systolic:16", dtype="int8")
    assert report.partition == (("array", "fc0, fc1, fc2"), ("host", "1 Softmax"))
    assert [layer.block for layer in report.layers[:2]] == [(16, 16), (16, 16)]
    assert report.hardware.startswith("systolic 16x16")
    assert Report.from_json(report.to_json()) == report
    console = Console(file=io.StringIO(), width=120)
    console.print(report_view(report))
    assert "Where\n  array: fc0, fc1, fc2\n  host: 1 Softmax" in console.file.getvalue()


def test_float_models_run_on_the_host(tmp_path):
    report = bscompile.inspect(mlp(tmp_path), target="systolic")
    assert report.partition == (("host", "fc0, fc1, fc2, 1 Softmax"),)


@needs_simulator
def test_an_mlp_runs_whole(tmp_path):
    """Built from ONNX, loaded, called with several batches; close to float32, and on the array."""
    path = mlp(tmp_path)
    _, artifact = build(path)
    with bscompile.load(artifact) as model:
        for rows in (1, 8, 300):
            before = simulator.cycles(8)
            got = model(samples(rows))
            assert simulator.cycles(8) > before
            assert np.abs(got - answer(path, samples(rows))).max() < 0.02
            assert (got.argmax(1) == answer(path, samples(rows)).argmax(1)).mean() > 0.97


@needs_simulator
def test_the_array_computes_what_the_processor_computes(tmp_path):
    """The same int8 model on target cpu: equal sums, so equal answers but for the last rounding."""
    path = mlp(tmp_path)
    _, artifact = build(path)
    _, other = build(path, "cpu")
    with bscompile.load(artifact) as here, bscompile.load(other) as there:
        np.testing.assert_allclose(here(samples()), there(samples()), rtol=1e-5, atol=1e-6)


class Samples(CalibrationDataReader):
    def __init__(self):
        self._left = [{"x": samples(64)}]

    def get_next(self):
        return self._left.pop() if self._left else None


@needs_simulator
@pytest.mark.parametrize("signed", [False, True])
def test_a_quantised_mlp_runs_whole(tmp_path, signed):
    """A model in 8 bits as onnxruntime's quantizer writes it, against onnxruntime itself."""
    path = tmp_path / "qdq.onnx"
    quantize_static(
        mlp(tmp_path),
        path,
        Samples(),
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    compiled = bscompile.build(path, "systolic:16", output=tmp_path / "q.bsc")
    (array, layers), (host, _) = compiled.report.partition
    assert (array, layers, host) == ("array", "fc0, fc1, fc2", "host")
    with bscompile.load(tmp_path / "q.bsc") as model:
        before = simulator.cycles(16)
        apart = np.abs(model(samples()) - answer(path, samples()))
        assert simulator.cycles(16) > before
    assert apart.max() <= 1.01 / 255  # one step of the quantised answer
    assert (apart < 1e-6).mean() > 0.85


@needs_simulator
def test_threads_and_arrays_of_two_sizes_do_not_disturb_each_other(tmp_path):
    path = mlp(tmp_path)
    models = []
    for size in (8, 16):
        _, artifact = build(path, f"systolic:{size}")
        models += [bscompile.load(artifact), bscompile.load(artifact)]
    x = samples()
    want = [model(x) for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        rounds = list(pool.map(lambda model: [model(x) for _ in range(5)], models))
    for several, alone in zip(rounds, want, strict=True):
        assert all(np.array_equal(one, alone) for one in several)
    np.testing.assert_array_equal(want[0], want[2])  # sums are exact on either array
    for model in models:
        model.close()


@needs_simulator
@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet5", "vit"])
def test_model_families_run_whole(tmp_path, name):
    """Linear layers in int8 on the array; convolutions, attention and norms on the host."""
    from tests.end_to_end.families import FAMILIES, export, with_weights, zero_blocks

    path = export(FAMILIES[name], tmp_path / "model.onnx", batch=2)
    onnx.save(with_weights(onnx.load(path), zero_blocks((8, 8), 0.3)), path)
    inputs = {key: value.numpy() for key, value in FAMILIES[name].inputs(False, 2).items()}
    (want,) = onnxruntime.InferenceSession(path).run(None, inputs)
    compiled, artifact = build(path)
    assert {part for part, _ in compiled.report.partition} == {"array", "host"}
    with bscompile.load(artifact) as model:
        before = simulator.cycles(8)
        (got,) = model.run(inputs).values()
        assert simulator.cycles(8) > before
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


@needs_simulator
def test_profiles_count_the_arrays_cycles(tmp_path):
    report = build(mlp(tmp_path), dimensions={"n": 16})[0].report
    expected = [layer.expected_seconds for layer in report.layers]
    with bscompile.load(tmp_path / "mlp.bsc") as model:
        calls = [call for call in model.profile({"x": samples(16)}) if "matmul" in call[0]]
    assert [seconds for _, seconds in calls] == pytest.approx(expected, rel=0.05)


def test_an_artifact_for_an_unknown_array_is_refused(tmp_path, monkeypatch):
    _, artifact = build(mlp(tmp_path))
    monkeypatch.setattr(simulator, "SIZES", (16, 32))
    with pytest.raises(ArtifactError, match="made for an array of 8, this runtime knows 16, 32"):
        bscompile.load(artifact)


def run_with_driver(tmp_path, change=lambda text: text):
    """``bscompile run`` of the MLP in a process of its own, with the vendor's driver."""
    _, artifact = build(mlp(tmp_path))
    source, driver = tmp_path / "driver.cc", tmp_path / "driver.so"
    source.write_text(change((Path(__file__).parent / "vendor_driver.cc").read_text()))
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-DSYSTOLIC_SIZE=8", "-DSYSTOLIC_DEPTH=256"]
    include = f"-I{simulator.SOURCES / 'driver'}"
    subprocess.run(["g++", *flags, include, source, "-o", driver], check=True)
    np.save(tmp_path / "x.npy", samples())
    command = [sys.executable, "-m", "bscompile", "run", str(artifact)]
    arguments = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "answers")]
    environment = {**os.environ, simulator.DRIVER_VARIABLE: str(driver)}
    return subprocess.run(
        [*command, *arguments], env=environment, check=False, capture_output=True, text=True
    )


def test_a_vendors_driver_takes_the_simulators_place(tmp_path):
    """Four functions in a library of another device, named in the environment: no Verilator."""
    assert run_with_driver(tmp_path).returncode == 0
    (got,) = map(np.load, (tmp_path / "answers").glob("*.npy"))
    np.testing.assert_allclose(got, answer(tmp_path / "mlp.onnx", samples()), atol=0.02)


def test_a_drivers_fault_is_an_error_of_one_line(tmp_path):
    done = run_with_driver(tmp_path, lambda text: text.replace("return 1;", "return -1;"))
    assert done.returncode == TargetError.exit_code
    (line,) = done.stderr.strip().splitlines()
    assert "systolic8_wait failed: the systolic array or its driver is out of order" in line

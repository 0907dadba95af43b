"""Whole models on an OpenCL device, from the ONNX file to the answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import bscompile
from bscompile.artifact import Artifact
from bscompile.devices import opencl as opencl_device
from bscompile.errors import ArtifactError, BscompileError, ModelError, TargetError
from bscompile.runtime.opencl import OpenCL
from tests.end_to_end.families import FAMILIES, WEIGHTS, export, with_weights
from tests.targets.lowering_helpers import model
from tests.targets.opencl.adapter import missing_device
from tests.tolerance import assert_close

pytestmark = pytest.mark.skipif(bool(missing_device()), reason=missing_device() or "it is here")

_NUMBERS = ", ".join(str((i % 7 - 3) / 8) for i in range(40 * 24))
SMALL = model(
    f"""g (float[2, 40] x) => (float[2, 24] y) <float[40, 24] w = {{{_NUMBERS}}}>
    {{ a = MatMul(x, w) y = Softmax(a) }}"""
)


@pytest.mark.parametrize(
    ("name", "weights", "variant"),
    [
        ("mlp", "16x16", "opencl"),
        ("mlp", "kronecker", "opencl:any"),
        ("lenet5", "4x4", "opencl"),
        pytest.param("vit", "16x16", "opencl", marks=pytest.mark.slow),
    ],
)
def test_models_equal_onnxruntime(name, weights, variant, tmp_path):
    family = FAMILIES[name]
    proto = onnx.load(export(family, tmp_path / "dense.onnx"))
    path = tmp_path / "model.onnx"
    onnx.save(with_weights(proto, WEIGHTS[weights]), path)
    torch.manual_seed(0)
    feeds = {key: value.numpy() for key, value in family.inputs(False, 2).items()}
    compiled = bscompile.build(path, target=variant)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with bscompile.load(compiled.save(tmp_path / "model.bsc")) as loaded:
        for _ in range(2):  # nothing of one call is left for the next
            (got,) = loaded.run(feeds).values()
            assert_close(got, session.run(None, feeds)[0], np.float32, 768, what=name)
            feeds = {key: value[::-1] for key, value in feeds.items()}


SCATTER = """float[4, 9] y) <int64[1, 1] i = {0}, float[1, 1] u = {1}>
    { y = ScatterElements(x, i, u) }"""


@pytest.fixture(scope="module")
def small():
    compiled = bscompile.build(SMALL, target="opencl")
    return Artifact(compiled.manifest, compiled.members, compiled.weights)


def changed(artifact, name, old, new):
    content = artifact.members[name]
    assert old in content
    return dataclasses.replace(
        artifact, members={**artifact.members, name: content.replace(old, new)}
    )


def test_kernels_are_timed_one_by_one(small):
    executor = OpenCL(small, 1)
    x = np.random.default_rng(0).standard_normal((2, 40)).astype(np.float32)
    calls = executor.profile([x], 3)
    assert len(calls) >= 2
    assert all(seconds > 0 for _, seconds in calls)
    executor.close()


def test_a_changed_weight_changes_the_answer(small):
    x = np.random.default_rng(0).standard_normal((2, 40)).astype(np.float32)
    (name, weight), *_ = small.weights.items()
    other = weight.copy()
    other.flat[np.flatnonzero(other)[5]] += 1
    first, second = (
        OpenCL(dataclasses.replace(small, weights={**small.weights, name: values}), 1).run([x])[0]
        for values in (weight, other)
    )
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"threads": 0}, "work-items in a group"),
        ({"sizes": (0, 1, 1)}, "work-items along x"),
        ({"shared_bytes": -1}, "bytes of local memory"),
    ],
)
def test_a_smaller_device_is_named(small, limits, message, monkeypatch):
    here = dataclasses.replace(opencl_device.limits(), **limits)
    monkeypatch.setattr(opencl_device, "limits", lambda: here)
    with pytest.raises(ArtifactError, match=message) as caught:
        OpenCL(small, 1)
    assert here.name in str(caught.value)


def test_code_for_half_precision_is_refused_where_there_is_none(small, monkeypatch):
    here = dataclasses.replace(opencl_device.limits(), extensions=frozenset())
    monkeypatch.setattr(opencl_device, "limits", lambda: here)
    manifest = dataclasses.replace(small.manifest, features=("float16",))
    with pytest.raises(ArtifactError, match=r"uses float16, .* has no cl_khr_fp16"):
        OpenCL(dataclasses.replace(small, manifest=manifest), 1)


@pytest.mark.parametrize(
    ("name", "old", "new", "error", "message"),
    [
        ("code/kernels.cl", b"__kernel", b"kernel_of", TargetError, "refused"),
        ("code/launches.json", b"_kernel", b"_missing", ArtifactError, "no kernel"),
        ("code/launches.json", b'"arguments": [', b'"arguments": [0, ', ArtifactError, "takes"),
        ("code/program.json", b'"param"', b'"scratch"', ArtifactError, "takes 0 weights"),
    ],
)
def test_broken_code_is_refused_in_one_line(small, name, old, new, error, message):
    with pytest.raises(error, match=message) as caught:
        OpenCL(changed(small, name, old, new), 1)
    assert "\n" not in str(caught.value)


def test_a_dtype_that_devices_may_lack_is_refused():
    proto = model("g (float16[4, 9] half) => (float16[4, 9] y) { y = Relu(half) }")
    with pytest.raises(TargetError, match="half is float16, and some OpenCL device has no"):
        bscompile.build(proto, target="opencl:any")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("float[4, 2] y, int64[4, 2] i) <int64[1] k = {2}> { y, i = TopK(x, k) }", "operator topk"),
        (SCATTER, "function scatter_elements"),
    ],
)
def test_operators_without_code_for_threads_are_named(text, what):
    proto = model(f"g (float[4, 9] x) => ({text}")
    with pytest.raises(ModelError, match=what) as caught:
        bscompile.build(proto, target="opencl")
    assert "\n" not in str(caught.value)


def test_open_dimensions_are_named():
    proto = model("g (float[batch, 3] x) => (float[batch, 3] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="opencl needs fixed shapes") as caught:
        bscompile.build(proto, target="opencl")
    assert "--dim batch=N" in str(caught.value)


@pytest.fixture
def looking_again():
    for function in (opencl_device.find, opencl_device.limits):
        function.cache_clear()
    yield
    for function in (opencl_device.find, opencl_device.limits):
        function.cache_clear()


@pytest.mark.usefixtures("looking_again")
def test_what_is_missing_is_named(monkeypatch):
    import sys

    from bscompile.targets import get_target

    monkeypatch.setenv(opencl_device.VARIABLE, "no such device")
    with pytest.raises(BscompileError, match="no OpenCL device is named 'no such device'"):
        bscompile.build(SMALL, target="opencl")
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(TargetError, match="pyopencl, which is not installed") as caught:
        bscompile.build(SMALL, target="opencl")
    assert "bscompile[opencl]" in str(caught.value)
    found = get_target("opencl").detect()
    assert not found.runs
    assert "pocl-opencl-icd" in found.install
    assert bscompile.build(SMALL, target="opencl:any").manifest.loader == "opencl"

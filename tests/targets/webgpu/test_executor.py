"""Artifacts for WebGPU by wgpu-py: the right answers, and one clear line for what cannot be."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from bscompile import runtime
from bscompile.artifact.launches import MEMBER as LAUNCHES
from bscompile.artifact.program import MEMBER as PROGRAM
from bscompile.devices.webgpu_device import workgroups
from bscompile.errors import ArtifactError, TargetError, UsageError
from tests.targets.webgpu.handmade import (
    KERNELS,
    MANIFEST,
    MEMBERS,
    WEIGHT,
    expected,
    some_inputs,
    write_handmade,
)
from tests.targets.webgpu.stacks import need_wgpu


@pytest.fixture
def device():
    need_wgpu()


def _changed(member, path, value):
    body = json.loads(MEMBERS[member])
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return {member: json.dumps(body).encode()}


@pytest.mark.usefixtures("device")
def test_it_answers_right_and_again(tmp_path):
    inputs = some_inputs()
    with runtime.load(write_handmade(tmp_path / "model.bsc")) as model:
        for x in (inputs["x"], inputs["x"][::-1]):  # the second is not contiguous
            inputs["x"] = x
            results = model.run(inputs)
            for name, wanted in expected(inputs).items():
                np.testing.assert_array_equal(results[name], wanted)
                assert results[name].dtype == wanted.dtype
        assert results["y"].flags.writeable


@pytest.mark.usefixtures("device")
def test_one_changed_weight_changes_the_answer(tmp_path):
    weight = WEIGHT.copy()
    weight[2, 1] += 1
    with runtime.load(write_handmade(tmp_path / "model.bsc", weight=weight)) as model:
        y = model.run(some_inputs())["y"]
    np.testing.assert_array_equal(y, expected(some_inputs(), weight)["y"])
    assert not np.array_equal(y, expected(some_inputs())["y"])


@pytest.mark.usefixtures("device")
def test_every_kernel_is_timed(tmp_path):
    with runtime.load(write_handmade(tmp_path / "model.bsc")) as model:
        times = model.profile(some_inputs(), repeats=2)
    assert [kernel for kernel, _ in times] == ["product", "relu", "indices"]
    assert all(seconds > 0 for _, seconds in times)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"code/kernels.wgsl": KERNELS.replace("0f", "0i").encode()}, "product_kernel|the program"),
        ({"code/kernels.wgsl": b""}, "the function 'product_kernel' is missing"),
        (_changed(LAUNCHES, ("relu", 0, "shared_bytes"), 1 << 20), "workgroup-storage-size"),
        (_changed(LAUNCHES, ("relu", 0, "block"), [4096, 1, 1]), "invocations-per-workgroup"),
        (_changed(LAUNCHES, ("relu", 0, "grid"), [1, 70000, 1]), "cannot be dispatched"),
        (_changed(LAUNCHES, ("relu", 0, "arguments"), [0, 2]), "wants more than its step has"),
        (_changed(PROGRAM, ("steps", 1, "kernel"), "gelu"), "kernel 'gelu' is missing"),
        (_changed(PROGRAM, ("storages", 2, "bytes"), 64), "'w' has another size"),
    ],
)
def test_a_broken_artifact_is_refused(tmp_path, members, message):
    path = write_handmade(tmp_path / "model.bsc", members=members)
    with pytest.raises(ArtifactError, match=message):
        runtime.load(path)


@pytest.mark.usefixtures("device")
def test_a_missing_feature_is_named(tmp_path):
    manifest = replace(MANIFEST, features=("ray-tracing",))
    with pytest.raises(ArtifactError, match=r"needs the WebGPU feature ray-tracing, .+ lacks it"):
        runtime.load(write_handmade(tmp_path / "model.bsc", manifest=manifest))


def test_without_wgpu_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wgpu", None)
    with pytest.raises(TargetError, match=r"package wgpu.*pip install 'bscompile\[webgpu\]'"):
        runtime.load(write_handmade(tmp_path / "model.bsc"))


@pytest.mark.usefixtures("device")
def test_without_an_adapter_the_driver_is_named(tmp_path, monkeypatch):
    import wgpu

    def none(**_):
        raise RuntimeError("Request adapter failed")

    monkeypatch.setattr(wgpu.gpu, "request_adapter_sync", none)
    with pytest.raises(TargetError, match=r"no WebGPU adapter.*mesa-vulkan-drivers"):
        runtime.load(write_handmade(tmp_path / "model.bsc"))


@pytest.mark.usefixtures("device")
def test_a_closed_model_says_so(tmp_path):
    model = runtime.load(write_handmade(tmp_path / "model.bsc"))
    model.close()
    with pytest.raises(UsageError, match="closed"):
        model.run(some_inputs())


@pytest.mark.parametrize("x", [1, 65535, 65536, 131071, 1_000_003])
def test_a_long_grid_is_folded_without_a_gap(x):
    (wide, high, layers), bound = workgroups("kernel", (x, 3, 1))
    assert (high, bound) == (3, x - 1)
    assert wide <= 65535
    assert x <= wide * layers < x + layers


def test_without_wgpu_this_machine_still_compiles(monkeypatch):
    from bscompile.targets import get_target

    monkeypatch.setitem(sys.modules, "wgpu", None)
    found = get_target("webgpu").detect()
    assert (found.compiles, found.runs) == (True, False)
    assert "browsers run it after bscompile export" in found.detail
    assert "bscompile[webgpu]" in found.install
    assert "mesa-vulkan-drivers" in found.install


def test_shaders_that_are_no_text_are_refused(tmp_path):
    path = write_handmade(tmp_path / "model.bsc", members={"code/kernels.wgsl": b"\xff\xfe"})
    need_wgpu()
    with pytest.raises(ArtifactError, match=r"kernels\.wgsl: no text"):
        runtime.load(path)

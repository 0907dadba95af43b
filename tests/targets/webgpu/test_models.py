"""Whole models for WebGPU, from the ONNX file to the answer: by wgpu, in Node, in a browser."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import bscompile
from bscompile.artifact.shaders import split_shaders
from bscompile.errors import ModelError, UsageError
from bscompile.export import ExportOptions
from bscompile.export import export as export_form
from tests.end_to_end.families import FAMILIES, WEIGHTS, export, with_weights
from tests.targets.lowering_helpers import model
from tests.targets.webgpu.stacks import need_chromium, need_wgpu, open_in_chromium, run_in_node
from tests.tolerance import assert_close


def _family(name, weights, folder):
    """(path of the ONNX file, inputs) of a family at batch 1."""
    family = FAMILIES[name]
    proto = onnx.load(export(family, folder / "dense.onnx", batch=1))
    path = folder / "model.onnx"
    onnx.save(with_weights(proto, WEIGHTS[weights]), path)
    torch.manual_seed(0)
    return path, {key: value.numpy() for key, value in family.inputs(False, 1).items()}


def _reference(path, feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mlp", "16x16"),
        ("mlp", "kronecker"),
        ("lenet5", "4x4"),
        pytest.param("vit", "16x16", marks=pytest.mark.slow),
        pytest.param("bert", "8x4", marks=pytest.mark.slow),
    ],
)
def test_models_equal_onnxruntime(name, weights, tmp_path):
    need_wgpu()
    path, feeds = _family(name, weights, tmp_path)
    compiled = bscompile.build(path, target="webgpu")
    with bscompile.load(compiled.save(tmp_path / "model.bsc")) as loaded:
        for _ in range(2):  # nothing of one call is left for the next
            (got,) = loaded.run(feeds).values()
            assert_close(got, _reference(path, feeds)[0], np.float32, 768, what=name)
            feeds = {key: np.ascontiguousarray(value[..., ::-1]) for key, value in feeds.items()}


@pytest.mark.slow
def test_the_loader_in_node_gives_what_onnxruntime_gives(tmp_path):
    path, feeds = _family("lenet5", "16x16", tmp_path)
    compiled = bscompile.build(path, target="webgpu")
    page = export_form(compiled.save(tmp_path / "model.bsc"), tmp_path / "web", "web")
    got = run_in_node(page.parent, feeds)
    assert_close(got["y"], _reference(path, feeds)[0], np.float32, 768)


def test_the_page_in_a_browser_is_as_near_as_it_says(tmp_path):
    need_chromium()
    path, feeds = _family("mlp", "16x16", tmp_path)
    compiled = bscompile.build(path, target="webgpu")
    options = ExportOptions(inputs=feeds, against=path)
    page = export_form(compiled.save(tmp_path / "model.bsc"), tmp_path / "web", "web", options)
    told = open_in_chromium(page.parent)
    assert told["what"] == "answered", told
    want = _reference(path, feeds)[0]
    got = np.array(told["outputs"]["y"], np.float32).reshape(want.shape)
    assert_close(got, want, np.float32, 1024)
    assert told["differences"]["y"] == pytest.approx(np.abs(got - want).max(), abs=1e-9)
    assert f"{told['differences']['y']:.1e}"[:3] in told["text"]
    assert "onnxruntime 1." in told["text"]


INTEGERS = model(
    """g (int64[3] ids, bool[3] wanted, float[2, 3] x)
        => (float[3, 4] rows, int64[2] top, bool[2, 3] above, int64[3] moved)
    <float[2, 4] table = {1, 2, 3, 4, 5, 6, 7, 8}, int64[1] one = {-1}, float[1] low = {0}>
    {
        found = Gather(table, ids)
        mask = Unsqueeze(wanted, one)
        zero = Sub(found, found)
        rows = Where(mask, found, zero)
        top = ArgMax<axis = 1, keepdims = 0>(x)
        above = Greater(x, low)
        moved = Add(ids, one)
    }"""
)


def test_wide_integers_and_truth_values_go_through_words_of_32_bits(tmp_path):
    need_wgpu()
    onnx.save(INTEGERS, tmp_path / "model.onnx")
    feeds = {
        "ids": np.array([1, 0, 1]),
        "wanted": np.array([True, True, False]),
        "x": np.array([[-1, 3, 2], [5, -4, 0]], np.float32),
    }
    wanted = _reference(tmp_path / "model.onnx", feeds)
    path = bscompile.build(INTEGERS, target="webgpu").save(tmp_path / "model.bsc")
    with bscompile.load(path) as loaded:
        for got, want in zip(loaded.run(feeds).values(), wanted, strict=True):
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype
        feeds["ids"] = np.array([1, 2**40, 0])
        with pytest.raises(UsageError, match="a number of ids needs more than 32 bits"):
            loaded.run(feeds)


def test_wide_integers_in_node(tmp_path):
    path = bscompile.build(INTEGERS, target="webgpu").save(tmp_path / "model.bsc")
    page = export_form(path, tmp_path / "web", "web")
    feeds = {
        "ids": np.array([1, 0, 1]),
        "wanted": np.array([1, 1, 0]),
        "x": np.array([[-1, 3, 2], [5, -4, 0]], np.float32),
    }
    got = run_in_node(page.parent, feeds)
    np.testing.assert_array_equal(got["rows"], [[5, 6, 7, 8], [1, 2, 3, 4], [0, 0, 0, 0]])
    np.testing.assert_array_equal(got["top"], [1, 0])
    np.testing.assert_array_equal(got["above"], [[False, True, True], [True, False, False]])
    np.testing.assert_array_equal(got["moved"], [0, -1, 0])
    answer = run_in_node(page.parent, feeds | {"ids": np.array([1, 2**40, 0])})
    assert answer == f"BscompileError: input ids: {2**40} needs more than 32 bits"


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (
            model("g (float[batch, 3] x) => (float[batch, 3] y) { y = Relu(x) }"),
            "webgpu needs fixed shapes.*--dim batch=N",
        ),
        (
            model("g (double[2, 3] x) => (double[2, 3] y) { y = Add(x, x) }"),
            "WebGPU has no float64",
        ),
        (
            model(f"""g (int64[3] x) => (int64[3] y) <int64[1] w = {{{2**40}}}>
                {{ y = Add(x, w) }}"""),
            "needs 64 bits, WebGPU has 32",
        ),
    ],
)
def test_what_webgpu_lacks_is_named(proto, message):
    with pytest.raises(ModelError, match=message) as caught:
        bscompile.build(proto, target="webgpu")
    assert "\n" not in str(caught.value)


_NUMBERS = ", ".join(str((i % 7 - 3) / 8) for i in range(40 * 24))
SMALL = model(
    f"""g (float[2, 40] x) => (float[2, 24] y) <float[40, 24] w = {{{_NUMBERS}}}>
    {{ a = MatMul(x, w) y = Softmax(a) }}"""
)


def test_half_precision_is_asked_for_in_the_artifact(tmp_path):
    need_wgpu()
    compiled = bscompile.build(SMALL, target="webgpu", dtype="float16")
    assert compiled.manifest.features == ("float16",)
    assert "enable f16;" in compiled.members["code/kernels.wgsl"].decode()
    onnx.save(SMALL, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((2, 40)).astype(np.float32)
    with bscompile.load(compiled.save(tmp_path / "model.bsc")) as loaded:
        (got,) = loaded.run({"x": x}).values()
    # Every weight is a number of half precision, so only sums are rounded.
    assert_close(got, _reference(tmp_path / "model.onnx", {"x": x})[0], np.float32, 40)


def test_every_shader_stays_within_what_any_device_offers():
    from bscompile.artifact.launches import MEMBER, Launches

    compiled = bscompile.build(SMALL, target="webgpu")
    assert not compiled.manifest.features
    launches = Launches.from_json(compiled.members[MEMBER])
    every = [one for kernel in launches.kernels.values() for one in kernel]
    assert {one.entry for one in every} == set(split_shaders(compiled.members["code/kernels.wgsl"]))
    for one in every:
        assert one.threads <= 256
        assert one.shared_bytes <= 16384
        assert len(one.arguments) <= 8


def test_a_kernel_of_many_buffers_asks_the_device_for_them(tmp_path):
    need_wgpu()
    names = [f"x{i}" for i in range(10)]
    proto = model(
        f"g ({', '.join(f'float[1, 3] {name}' for name in names)}) => (float[1, 30] y) "
        f"{{ y = Concat<axis = 1>({', '.join(names)}) }}"
    )
    feeds = {name: np.full((1, 3), i, np.float32) for i, name in enumerate(names)}
    with bscompile.load(
        bscompile.build(proto, target="webgpu").save(tmp_path / "model.bsc")
    ) as loaded:
        (got,) = loaded.run(feeds).values()
    np.testing.assert_array_equal(got, np.repeat(np.arange(10), 3)[None])

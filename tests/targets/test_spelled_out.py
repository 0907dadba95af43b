"""Operators that ONNX defines by functions: from the file to the answer, as onnxruntime has it."""

import numpy as np
import onnxruntime
import pytest

import bscompile
from tests.targets.lowering_helpers import model
from tests.tolerance import assert_close

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def assert_as_onnxruntime(proto, tmp_path, *feeds):
    loaded = bscompile.load(bscompile.build(proto).save(tmp_path / "model.bsc"))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for one in feeds:
        got = loaded.run(one)
        for (name, array), want in zip(got.items(), session.run(None, one), strict=True):
            assert_close(array, want, np.float32, 64, what=name)


@pytest.mark.parametrize(
    ("attributes", "heads"),
    [("", 4), ("<is_causal = 1>", 2), ("<scale = 0.3, softcap = 2.0>", 4)],
)
def test_attention(attributes, heads, tmp_path):
    proto = model(
        f"""g (float[b, 4, s, 8] q, float[b, {heads}, t, 8] k, float[b, {heads}, t, 8] v)
            => (float[b, 4, s, 8] y) {{ y = Attention{attributes}(q, k, v) }}""",
        opset=23,
    )
    feeds = [
        {"q": normal(b, 4, s, 8), "k": normal(b, heads, t, 8), "v": normal(b, heads, t, 8)}
        for b, s, t in [(2, 5, 5), (1, 1, 7)]
    ]
    assert_as_onnxruntime(proto, tmp_path, *feeds)


def test_attention_of_packed_heads_with_a_mask(tmp_path):
    proto = model(
        """g (float[b, s, 32] q, float[b, t, 32] k, float[b, t, 32] v, bool[s, t] m)
            => (float[b, s, 32] y) {
            y = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v, m) }""",
        opset=23,
    )
    mask = np.tri(3, 6, 2, dtype=bool)
    feeds = {"q": normal(2, 3, 32), "k": normal(2, 6, 32), "v": normal(2, 6, 32), "m": mask}
    assert_as_onnxruntime(proto, tmp_path, feeds)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved, tmp_path):
    proto = model(
        f"""g (float[b, 4, s, 8] x, float[50, 4] c, float[50, 4] n, int64[b, s] at)
            => (float[b, 4, s, 8] y) {{
            y = RotaryEmbedding<interleaved = {interleaved}>(x, c, n, at) }}""",
        opset=23,
    )
    angles = normal(50, 4)
    feeds = {"x": normal(2, 4, 3, 8), "c": np.cos(angles), "n": np.sin(angles)}
    assert_as_onnxruntime(proto, tmp_path, {**feeds, "at": np.array([[0, 1, 2], [49, 7, 7]])})


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_swish(alpha, tmp_path):
    proto = model(
        f"g (float[n, 5] x) => (float[n, 5] y) {{ y = Swish<alpha = {alpha}>(x) }}", opset=24
    )
    loaded = bscompile.load(bscompile.build(proto).save(tmp_path / "model.bsc"))
    x = 4 * normal(3, 5)
    wide = x.astype(np.float64)
    assert_close(loaded.run({"x": x})["y"], wide / (1 + np.exp(-alpha * wide)), np.float32, 64)


def test_celu(tmp_path):
    proto = model("g (float[n, 5] x) => (float[n, 5] y) { y = Celu<alpha = 1.5>(x) }")
    assert_as_onnxruntime(proto, tmp_path, {"x": normal(3, 5)})


def test_attention_without_a_mask_but_with_a_past(tmp_path):
    """An input that is left out before one that is given."""
    proto = model(
        """g (float[2, 4, s, 8] q, float[2, 4, s, 8] k, float[2, 4, p, 8] past)
            => (float[2, 4, s, 8] y, float[2, 4, t, 8] keys, float[2, 4, t, 8] values) {
            y, keys, values = Attention<is_causal = 1>(q, k, k, "", past, past) }""",
        opset=23,
    )
    feeds = {"q": normal(2, 4, 3, 8), "k": normal(2, 4, 3, 8), "past": normal(2, 4, 5, 8)}
    assert_as_onnxruntime(proto, tmp_path, feeds)

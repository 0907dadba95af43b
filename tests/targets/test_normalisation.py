"""Instance and group normalisation against float64: odd sizes, means far from zero."""

import numpy as np
import pytest

from tests.targets.lowering_helpers import Compiled, model
from tests.tolerance import assert_close

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def wanted(x, groups, scale, shift, epsilon):
    rows = x.astype(np.float64).reshape(len(x), groups, -1)
    centred = rows - rows.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    y = y.reshape(x.shape)
    behind = [-1] + [1] * (x.ndim - 2)
    return y * scale.reshape(behind).astype(np.float64) + shift.reshape(behind)


def check(text, groups, shape, *, offset=0.0, after=lambda y, *_: y, epsilon=1e-5, fused=True):
    """The model computes from x (channels last where ``fused``), and kept its one kernel or not."""
    channels = shape[1]
    proto = model(text, opset=21)
    compiled = Compiled(proto)
    assert ("normalise_groups" in compiled.executable.stats()) == fused
    assert "transpose" not in compiled.executable.stats()
    vectors = [normal(channels) for _ in range(4)]
    x = normal(*shape) + np.float32(offset)
    feeds = {"x": x.transpose(0, 2, 3, 1) if fused else x}
    feeds |= dict(zip(("scale", "shift", "more", "moved"), vectors, strict=True))
    (got,) = compiled(feeds)
    want = after(wanted(x, groups, vectors[0], vectors[1], epsilon), *vectors[2:])
    want = want.transpose(0, 2, 3, 1) if fused else want
    # Each of x, its mean and their difference is rounded, which the deviation of one makes larger.
    scale = max(float(np.abs(want).max()), 1.0) * (1 + abs(offset))
    assert_close(got, want, np.float32, np.log2(x[0].size) + 2, scale)


IMAGE = """g (float[{b},{h},{w},{c}] x, float[{c}] scale, float[{c}] shift, float[{c}] more,
        float[{c}] moved) => (float[{b},{h},{w},{c}] y) {{
    first = Transpose<perm: ints = [0, 3, 1, 2]>(x)
    {body}
    y = Transpose<perm: ints = [0, 2, 3, 1]>(last)
}}"""
GROUPS = "last = GroupNormalization<num_groups: int = {g}>(first, scale, shift)"


@pytest.mark.parametrize(
    ("groups", "shape", "offset"),
    [
        (3, (2, 12, 5, 7), 0),
        (1, (1, 13, 1, 1), 0),
        (1, (2, 200, 3, 5), 1),  # a group wider than what is summed side by side
        (32, (1, 320, 9, 8), 1),
        (7, (3, 21, 11, 3), 50),
        (67, (1, 67, 40, 41), 0),  # the last vectors overlap
        (2, (1, 6, 129, 1), 1000),
    ],
)
def test_groups_of_channels(groups, shape, offset):
    b, c, h, w = shape
    text = IMAGE.format(b=b, h=h, w=w, c=c, body=GROUPS.format(g=groups))
    check(text, groups, shape, offset=offset)


def test_symbolic_images():
    text = IMAGE.format(b="b", h="h", w="w", c=40, body=GROUPS.format(g=8))
    check(text, 8, (2, 40, 6, 11))


def test_instances_with_what_follows_are_one_kernel():
    body = """axes = Constant<value_ints: ints = [1, 2]>()
        scaled = InstanceNormalization<epsilon: float = 1e-3>(first, scale, shift)
        m = Unsqueeze(more, axes)  a = Unsqueeze(moved, axes)
        product = Mul(m, scaled)  sum = Add(product, a)  last = Sigmoid(sum)"""

    def after(y, more, moved):
        return 1 / (1 + np.exp(-(y * more[:, None, None] + moved[:, None, None])))

    text = IMAGE.format(b=1, h=10, w=13, c=37, body=body)
    check(text, 37, (1, 37, 10, 13), after=after, epsilon=1e-3)


@pytest.mark.parametrize(("groups", "offset"), [(1, 0), (4, 1000), (12, 5)])
def test_channels_first_are_spelled_out_and_stay_exact(groups, offset):
    text = f"""g (float[b,12,9,5] x, float[12] scale, float[12] shift, float[12] more,
            float[12] moved) => (float[b,12,9,5] y) {{
        y = GroupNormalization<num_groups: int = {groups}>(x, scale, shift)
    }}"""
    check(text, groups, (2, 12, 9, 5), offset=offset, fused=False)

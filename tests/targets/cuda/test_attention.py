"""Attention in one launch: masks, storage orders, odd sizes, on either kind of cores."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from bscompile.targets.cpu.code.tensors import Tensor
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.kernels.code.attention import generate
from tests.targets.cuda import adapter
from tests.tolerance import assert_close

SHARED = hardware("sm_90").group_bytes
#: (queries, keys, d, e, orders of q k v out, mask's axes of size one or None for no mask)
CASES = {
    "bert": (70, 70, 16, 16, ("bshd", "bthd", "bthe", "bshe"), "hs"),
    "causal": (33, 33, 8, 8, ("bhsd", "bhtd", "bhte", "bhse"), "bh"),
    "plain, K turned": (9, 65, 20, 12, ("bhsd", "bhdt", "bhte", "bhse"), None),
    "one tile": (7, 7, 5, 3, ("bhsd", "bhtd", "bhte", "bshe"), "h"),
    "queries without a key": (12, 40, 8, 8, ("bhsd", "bhtd", "bhte", "bhse"), "bh"),
    "one query": (1, 130, 24, 16, ("bshd", "bthd", "bthe", "bshe"), "bhs"),
}
B, H = 2, 2


def operands(case, rng):
    """(tensors of q, k and v, that of the mask or None, that of the result, arrays as stored)."""
    s, t, d, e, orders, ones = CASES[case]
    lengths = {"b": B, "h": H, "s": s, "t": t, "d": d, "e": e}
    tensors, arrays = [], []
    for name, order in zip("qkv", orders, strict=False):
        shape = tuple(lengths[axis] for axis in order)
        tensors.append(Tensor(name, order, shape))
        arrays.append(rng.standard_normal(shape).astype(np.float32))
    mask = None
    if ones is not None:
        shape = tuple(1 if axis in ones else lengths[axis] for axis in "bhst")
        mask = Tensor("mask", "bhst", shape)
        if "without" in case:
            values = np.zeros(shape)
            values[:, :, ::3] = -np.inf
        elif case == "causal":  # whole tiles of keys are masked for the first queries
            values = np.triu(np.full((s, t), -np.inf, np.float32), 1)[None, None]
        else:
            values = np.where(rng.random(shape) < 0.3, -1e9, rng.standard_normal(shape))
        arrays.append(values.astype(np.float32))
    out = Tensor("out", orders[3], tuple(lengths[axis] for axis in orders[3]))
    return tensors, mask, out, arrays


def wanted(tensors, mask, arrays, scale, narrow):
    def plain(tensor, array, axes):
        array = array.astype(narrow).astype(np.float64)
        return np.einsum(array, [ord(a) - 97 for a in tensor.axes], [ord(a) - 97 for a in axes])

    q, k, v = (
        plain(tensor, array, axes)
        for tensor, array, axes in zip(tensors, arrays, ("bhsd", "bhtd", "bhte"), strict=False)
    )
    scores = scale * q @ k.transpose(0, 1, 3, 2)
    if mask is not None:
        scores = scores + arrays[3].astype(np.float64)
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = powers / powers.sum(axis=-1, keepdims=True)
    return np.nan_to_num(weights) @ v


@pytest.fixture(scope="module")
def results():
    """(case, dtype) -> (got, wanted), everything compiled in one go."""
    import ml_dtypes

    functions, calls = {}, {}
    dtypes = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    for number, case in enumerate(CASES):
        for dtype in ("float32", "float16" if number % 2 else "bfloat16"):
            tensors, mask, out, arrays = operands(case, np.random.default_rng(number))
            name = f"case{number}_{dtype}"
            functions[name] = generate(
                *tensors, mask, out, scale=0.3, multiplied=dtype, shared_bytes=SHARED,
                drop_nan="without" in case,
            )  # fmt: skip
            want = wanted(tensors, mask, arrays, 0.3, dtypes[dtype])
            order = ["bhse".index(axis) for axis in out.axes]
            calls[case, dtype] = name, arrays, want.transpose(order)
    module = adapter.compile_module(functions, hardware("sm_90"))
    gpu, found = tvm.cuda(0), {}
    for key, (name, arrays, want) in calls.items():
        y = tvm.runtime.tensor(np.full(want.shape, np.nan, np.float32), gpu)
        module[name](*(tvm.runtime.tensor(np.ascontiguousarray(a), gpu) for a in arrays), y)
        found[key] = y.numpy(), want
    return found


@pytest.mark.parametrize("case", CASES)
def test_cuda_cores_are_exact(case, results):
    got, want = results[case, "float32"]
    assert_close(got, want, np.float32, CASES[case][1])


@pytest.mark.parametrize("case", CASES)
def test_tensor_cores_round_the_powers(case, results):
    """Inputs are rounded in the reference too; what is left are the rounded weights of V."""
    dtype = next(dtype for one, dtype in results if one == case and dtype != "float32")
    got, want = results[case, dtype]
    eps = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    largest = 3.5  # of V: the rounding of each weight is at most eps / 2 of it
    assert np.abs(got - want).max() <= eps * largest
    assert np.abs(got - want).mean() > 0  # and it is there: tensor cores were used


def test_tiles_that_do_not_fit_are_left_to_others():
    tensors, mask, out, _ = operands("bert", np.random.default_rng(0))
    made = generate(*tensors, mask, out, scale=1.0, multiplied="float32", shared_bytes=4096)
    assert made is None

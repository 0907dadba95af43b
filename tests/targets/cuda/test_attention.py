"""Attention in one launch: masks, storage orders, odd sizes, on either kind of cores."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.kernels.code.attention import generate
from tests.targets.attention_cases import CASES, operands, wanted
from tests.targets.cuda import adapter
from tests.tolerance import assert_close

SHARED = hardware("sm_90").group_bytes


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

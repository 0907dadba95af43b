"""Dense layers whose weight lies as it is, [n, k]: every kernel finds its pieces in it."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import tvm

from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import (
    PRECISIONS,
    in_precision,
    kernel_weight,
    precision_of,
    rounded,
)
from bscompile.targets.base import Problem, problem_of
from bscompile.targets.cuda import TARGET
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.kernels.band_shape import BandShape
from bscompile.targets.cuda.kernels.code import epilogue
from tests.targets.cuda import adapter
from tests.targets.numeric_suite import Call
from tests.tolerance import assert_close

MACHINE = hardware("sm_90")
EPILOGUE = ("bias", "relu", "residual")
N, K, ROWS = 200, 512, 37  # outputs and rows fill no tile
#: (template, dtype, what differs from the configuration that comes first)
KERNELS = {
    "wgmma, neighbours": ("wgmma", "float16", asdict(BandShape(1, 16, 1, 64, 3, 4))),
    "wgmma, two bands and neighbours": ("wgmma", "bfloat16", asdict(BandShape(2, 16, 1, 64, 2, 2))),
    "wgmma, steps shared": ("wgmma", "bfloat16", asdict(BandShape(1, 32, 1, 64, 2, 1, split=2))),
    "tensor cores": (
        *("tensor_cores", "bfloat16"),
        {"tile": 64, "rows": 32, "warps_m": 1, "warps_n": 2, "stages": 3},
    ),
    "tensor cores, int8 in pieces": ("tensor_cores", "int8", {"chunk": 2}),
    "CUDA cores": (
        *("cuda_cores", "float32"),
        {"tile": 64, "rows": 32, "threads_m": 8, "threads_n": 16},
    ),
    "CUDA cores, pieces": ("cuda_cores", "float32", {"chunk": 4}),
    "few rows": ("few_rows", "bfloat16", {"tile": 16, "split": 2}),
}


def built(weight, steps, kind, dtype, wanted):
    """(kernel, layer)."""
    op = in_precision(LinearOp("layer", weight, steps), PRECISIONS[dtype])
    rows = 2 if kind == "few_rows" else ROWS
    problem = problem_of(op, None, PRECISIONS[dtype], rows)
    template = TARGET.template(f"dense_{kind}")
    first = dict(template.space(problem, MACHINE)[0])
    first.pop("chunk", None)
    config = {**first, **wanted}
    return template.build(problem, kernel_weight(op), config, MACHINE), op


@pytest.fixture(scope="module")
def kernels():
    """Name -> (kernel, layer, function), everything compiled in one go."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((N, K)) / np.sqrt(K)).astype(np.float32)
    weight[64:128, 64:128] = 0  # zeros are read like any number
    made = {}
    for number, (name, (kind, dtype, config)) in enumerate(KERNELS.items()):
        steps = EPILOGUE if number % 2 else ("bias",)
        made[name] = built(weight, steps, kind, dtype, config)
    functions = {f"k{i}": kernel.prim_func for i, (kernel, _) in enumerate(made.values())}
    wide = Problem("dense", None, 1500, 8, (1, 1), 1500 * 8, 0, "bfloat16", EPILOGUE)
    functions["finish"] = epilogue.kernel(replace(wide, x_dtype="bfloat16"))
    module = adapter.compile_module(functions, MACHINE)
    found = {
        name: (kernel, op, module[f"k{i}"]) for i, (name, (kernel, op)) in enumerate(made.items())
    }
    return {**found, "finish": module["finish"]}


@pytest.mark.parametrize("name", KERNELS)
def test_a_weight_of_whole_steps_stays_as_it_is(name, kernels, rng):
    kernel, op, function = kernels[name]
    assert dict(kernel.operands)["values"].shape == (N, K)
    rows = 3 if "few" in name else ROWS
    x = rng.standard_normal((rows, K)).astype(np.float32)
    shapes = {"bias": (N,), "residual": (rows, N)}
    tensors = [
        rng.standard_normal(shapes[step]).astype(np.float32)
        for step in op.epilogue
        if step in shapes
    ]
    got = adapter.run(function, Call(kernel, (x, *tensors), (rows, N)))
    if kernel.x_dtype:  # what it takes is rounded before
        x = rounded(x, precision_of(op)).astype(np.float32)
    assert_close(got, evaluate(op, x, tensors), np.float32, K, what=name)


def test_the_epilogue_alone_makes_a_layer_of_products(kernels, rng):
    products, residual = (rng.standard_normal((5, 1500)).astype(np.float32) for _ in range(2))
    bias = rng.standard_normal(1500).astype(np.float32)
    x = np.zeros((5, 8), PRECISIONS["bfloat16"])
    on_device = [tvm.runtime.tensor(a, tvm.cuda(0)) for a in (x, bias, residual, products)]
    kernels["finish"](*on_device)
    want = np.maximum(products.astype(np.float64) + bias, 0) + residual
    assert_close(on_device[-1].numpy(), want, np.float32, 1)


def test_others_are_packed(rng):
    weight = rng.standard_normal((N, K - 8)).astype(np.float32)
    for kind, dtype in (("wgmma", "bfloat16"), ("tensor_cores", "bfloat16")):
        op = in_precision(LinearOp("layer", weight, ()), PRECISIONS[dtype])
        problem = problem_of(op, 32, PRECISIONS[dtype])
        template = TARGET.template(f"dense_{kind}")
        config = template.space(problem, MACHINE)[0]
        operands = template.build(problem, kernel_weight(op), config, MACHINE).operands
        assert operands[0][1].ndim == 3

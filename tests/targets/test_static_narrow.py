"""int8 and bfloat16 kernels of other processors: exact sums, float64 of the rounded operands."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from bscompile import targets
from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import PRECISIONS, QuantizedMatrix
from bscompile.dialect.quantization import Quantization
from bscompile.targets.base import problem_of
from bscompile.targets.kernels.narrow import PAIRS, NarrowPairs, NarrowProducts
from tests.targets.narrow_running import wanted
from tests.targets.numeric_suite import CASES as NUMERIC
from tests.targets.numeric_suite import layer
from tests.targets.static_running import needs, run_kernels
from tests.targets.test_kernels import block_sparse, epilogue_tensors
from tests.tolerance import assert_close

#: (variant, precision, the instruction that is meant; test_instructions.py looks for it)
MACHINES = [
    pytest.param(*case, marks=needs(case[0].split("-")[0]), id="-".join(case))
    for case in [
        ("aarch64", "int8", "mla"),
        ("aarch64-dotprod", "int8", "sdot"),
        ("aarch64-i8mm", "int8", "usdot"),
        ("aarch64-i8mm", "bfloat16", "bfdot"),
        ("aarch64-i8mm", "int8", "usmmla"),
        ("aarch64-i8mm", "bfloat16", "bfmmla"),
        ("riscv64", "int8", "vmacc"),
    ]
]
#: (shape, block or None for dense, density, rows, epilogue)
CASES = [
    ((64, 64), (16, 16), 0.3, 18, ("bias",)),
    ((65, 47), (32, 32), 0.4, 1, ("bias", "relu")),
    ((67, 50), (4, 8), 0.5, 9, ("bias", "gelu", "residual")),
    ((40, 30), (12, 7), 0.0, 2, ()),
    ((10, 84), None, 1.0, 1, ("bias",)),
    ((130, 33), None, 1.0, 17, ()),
]


def template_of(instruction):
    return NarrowPairs() if instruction in PAIRS else NarrowProducts()


def build(op, precision, m, hardware, template, index=0):
    weight = op.weight
    if op.quantization is not None:
        weight = QuantizedMatrix.of(weight, op.quantization)
    problem = problem_of(op, m, PRECISIONS[precision])
    space = template.space(problem, hardware)
    return template.build(problem, weight, space[5 * index % len(space)], hardware)


def arrays_of(kernel, x, tensors):
    return [x, *(np.ascontiguousarray(a) for _, a in kernel.operands), *tensors]


@pytest.mark.parametrize(("variant", "precision", "instruction"), MACHINES)
def test_products(variant, precision, instruction):
    rng = np.random.default_rng(0)
    hardware = targets.resolve(f"cpu:{variant}", 2).hardware
    template, calls, want, met = template_of(instruction), [], [], []
    for index, (shape, block, density, m, epilogue) in enumerate(CASES):
        weight = block_sparse(rng, shape, block or (8, 8), density)
        op = LinearOp("layer", weight if block else weight.to_dense(), epilogue)
        if template.name == "narrow_pairs" and m == 1 and index != 1:
            continue  # a single row is left to dot products
        x = rng.standard_normal((m, shape[1])).astype(np.float32)
        tensors = epilogue_tensors(rng, epilogue, m, shape[0])
        kernel = build(op, precision, None if index == 1 else m, hardware, template, index)
        y = np.full((m, shape[0]), np.nan, np.float32)
        calls.append((kernel.prim_func, arrays_of(kernel, x, tensors), y))
        met.append(str(CASES[index]))
        want.append((wanted(op, precision, x, tensors, native=True), shape[1]))
    run = run_kernels(f"cpu:{variant}", calls)
    for got, (right, k), case in zip(run([c[1] for c in calls]), want, met, strict=True):
        assert_close(got, right, np.float32, k, what=case)


QUANTIZED = [param for param in MACHINES if param.values[1] == "int8"]


@pytest.mark.parametrize(("variant", "precision", "instruction"), QUANTIZED)
def test_eight_bits_in_and_out(variant, precision, instruction):
    """Static quantisation at both ends is exact; one changed weight shows."""
    rng = np.random.default_rng(0)
    hardware = targets.resolve(f"cpu:{variant}", 2).hardware
    ops, calls = [], []
    for q_dtype in ("uint8", "int8"):
        values = rng.integers(-127, 128, (48, 64)) * np.kron(
            rng.random((3, 4)) < 0.4, np.ones((16, 16), int)
        )
        quantization = Quantization(
            rng.uniform(1e-3, 1e-2, 48).astype(np.float32), "static", q_dtype, q_dtype,
            0.031, 3, "uint8", 0.23, 121,
        )  # fmt: skip
        from bscompile.formats import BlockSparseMatrix

        weight = BlockSparseMatrix.from_dense(values.astype(np.int8), (16, 16))
        op = LinearOp("layer", weight, ("bias", "relu"), quantization=quantization)
        low, high = (0, 256) if q_dtype == "uint8" else (-128, 128)
        x = rng.integers(low, high, (7, 64)).astype(q_dtype)
        bias = rng.standard_normal(48).astype(np.float32)
        kernel = build(op, "int8", 7, hardware, template_of(instruction))
        calls.append((kernel.prim_func, arrays_of(kernel, x, [bias]), np.zeros((7, 48), np.uint8)))
        ops.append((op, x, bias))
    run = run_kernels(f"cpu:{variant}", calls)
    before = run([call[1] for call in calls])
    for (op, x, bias), got in zip(ops, before, strict=True):
        np.testing.assert_array_equal(got, evaluate(op, x, (bias,)))
        assert len(np.unique(got)) > 20
    changed = [[x, np.where(values == 0, values, values ^ 64), *rest] for x, values, *rest in
               (call[1] for call in calls)]  # fmt: skip
    for a, b in zip(before, run(changed), strict=True):
        assert (a != b).any()


@pytest.mark.parametrize("case", [c for c in NUMERIC if c.dtype == "float32"], ids=str)
def test_float32_kernels_of_i8mm_are_those_of_aarch64(case):
    """So the numeric suite runs them for one of the two."""
    made = []
    for variant in ("aarch64", "aarch64-i8mm"):
        context, op = targets.resolve(f"cpu:{variant}", 2), layer(case, np.random.default_rng(0))
        problem = problem_of(op, case.rows, np.dtype(np.float32))
        kernels = {}
        for template in context.target.templates:
            for config in template.space(problem, context.hardware)[:1]:
                kernel = template.build(problem, op.weight, config, context.hardware)
                kernels[template.name] = kernel.prim_func
        made.append(kernels)
    plain, wider = made
    assert plain.keys() == wider.keys() != set()
    for name, func in plain.items():
        tvm.ir.assert_structural_equal(func, wider[name])

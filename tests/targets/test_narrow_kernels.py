"""bfloat16, float16 and int8 kernels against float64 of the rounded operands."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import PRECISIONS
from bscompile.dialect.quantization import Quantization
from bscompile.formats import KroneckerSum
from bscompile.targets.base import problem_of
from tests.targets.narrow_running import (
    PATHS,
    assembly,
    kernel_of,
    load_kernel,
    machine,
    run_kernel,
    template,
    wanted,
)
from tests.targets.test_kernels import block_sparse, epilogue_tensors, kronecker
from tests.tolerance import assert_close

CASES = [  # shape, block, rows, density
    ((64, 64), (16, 16), 32, 0.3),
    ((67, 50), (4, 8), 9, 0.4),
    ((65, 47), (16, 16), 33, 0.1),
    ((130, 33), (8, 8), 2, 1.0),
    ((30, 7), (3, 5), 5, 0.0),
    ((10, 84), (12, 7), 1, 1.0),
    ((67, 50), (32, 1), 18, 0.3),
    ((96, 70), (2, 2), 40, 0.2),
    ((3, 1), (1, 1), 7, 1.0),
    ((128, 144), (64, 64), 12, 0.5),
]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def on(isa, features):
    spec = machine(isa, features)
    if spec is None:
        pytest.skip(f"this CPU lacks one of {isa} {' '.join(features)}")
    return spec


def names(precision, features, form):
    """Templates that take a weight of that form in that precision."""
    if features or precision == "int8":
        return ["narrow", *(["narrow_rows"] if features and form == "block_sparse" else [])]
    return {"dense": ["dense"], "kronecker": ["kronecker"]}.get(
        form, ["block_sparse_outputs", "block_sparse_rows"]
    )


def check(op, precision, hardware, name, m, rng, config=None):
    kernel, config = kernel_of(op, precision, hardware, name, m, config)
    n, k = op.shape
    x = rng.standard_normal((m, k)).astype(np.float32)
    tensors = epilogue_tensors(rng, op.epilogue, m, n)
    want = wanted(op, precision, x, tensors, name.startswith("narrow"))
    got = run_kernel(kernel, hardware, x, tensors, (m, n))
    assert_close(got, want, np.float32, k, what=f"{name} {precision} {op.shape} {config}")


@pytest.mark.parametrize(("precision", "features"), PATHS)
@pytest.mark.parametrize(
    ("form", "shape", "block", "m", "density"),
    [("block_sparse", *case) for case in CASES] + [("dense", *case) for case in CASES[::3]],
)
def test_products(precision, features, form, shape, block, m, density, rng):
    hardware = on("avx512", features)
    weight = block_sparse(rng, shape, block, density)
    op = LinearOp("layer", weight if form == "block_sparse" else weight.to_dense(), ("bias",))
    problem = problem_of(op, m, PRECISIONS[precision])
    for name in names(precision, features, form):
        if not name.endswith("_rows") or template(name).space(problem, hardware):
            check(op, precision, hardware, name, m, rng)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "int8"])
def test_avx2(precision, rng):
    hardware = on("avx2", ())
    weight = block_sparse(rng, (67, 50), (16, 16), 0.4)
    name = "narrow" if precision == "int8" else "block_sparse_outputs"
    check(LinearOp("layer", weight, ("bias", "gelu")), precision, hardware, name, 9, rng)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("order", ["a_first", "b_first"])
def test_factorized(precision, order, rng):
    hardware = on("avx512", ())
    op = LinearOp("layer", kronecker(rng, (66, 50), (6, 5), 2, 0.4), ("bias",))
    space = template("kronecker").space(problem_of(op, 18, PRECISIONS[precision]), hardware)
    config = next(c for c in space if c["order"] == order)
    check(op, precision, hardware, "kronecker", 18, rng, config)


def small(rng, *shape):
    """Integers whose sums bfloat16 holds exactly."""
    return rng.integers(-1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("order", ["a_first", "b_first"])
@pytest.mark.parametrize(
    ("grid", "block", "rank", "m", "density"),
    [
        ((9, 7), (8, 8), 1, 33, 0.4),
        ((5, 11), (4, 6), 2, 18, 0.5),
        ((3, 5), (16, 16), 3, 20, 0.6),
        ((7, 5), (12, 2), 4, 40, 1.0),
        ((3, 4), (32, 8), 5, 9, 0.5),
        ((9, 7), (8, 8), 2, 1, 0.4),
        ((3, 2), (20, 64), 1, 3, 0.5),
        ((4, 3), (8, 4), 2, 5, 0.0),
    ],
)
def test_factors_in_pairs_are_exact_where_bfloat16_is(order, grid, block, rank, m, density, rng):
    """Integers small enough show every wrong index: nothing is rounded on the way."""
    hardware = on("avx512", ("avx512_bf16",))
    live = rng.random(grid) < density
    live[1] = False
    weight = KroneckerSum(small(rng, rank, *grid) * live, small(rng, rank, *block))
    op, x = LinearOp("layer", weight, ("bias",)), small(rng, m, grid[1] * block[1])
    tensors = epilogue_tensors(rng, op.epilogue, m, op.shape[0])
    want = evaluate(op, x, tensors)
    problem = problem_of(op, m, PRECISIONS["bfloat16"])
    space = [
        c for c in template("narrow_kronecker").space(problem, hardware) if c["order"] == order
    ]
    for config in {c["rows"]: c for c in space[::-1]}.values():
        kernel, _ = kernel_of(op, "bfloat16", hardware, "narrow_kronecker", m, config)
        got = run_kernel(kernel, hardware, x, tensors, want.shape)
        np.testing.assert_array_equal(got, want.astype(np.float32), err_msg=str(config))


@pytest.mark.parametrize("rank", [1, 2])
def test_factors_in_pairs_with_symbolic_rows(rank, rng):
    """Tiles of fewer rows serve short calls; a row that is not finite spoils no other."""
    hardware = on("avx512", ("avx512_bf16",))
    live = rng.random((9, 6)) < 0.5
    weight = KroneckerSum(small(rng, rank, 9, 6) * live, small(rng, rank, 8, 8))
    op = LinearOp("layer", weight, ("relu",))
    run = load_kernel(kernel_of(op, "bfloat16", hardware, "narrow_kronecker", None)[0], hardware)
    for m in (1, 3, 7, 21):
        x = small(rng, m, 48)
        want = evaluate(op, x).astype(np.float32)
        x[m // 2, 5] = np.inf
        others = [row for row in range(m) if row != m // 2]
        np.testing.assert_array_equal(run(x, (), (m, 72))[others], want[others])


@pytest.mark.parametrize("order", ["a_first", "b_first"])
@pytest.mark.parametrize("rank", [1, 4])
def test_factors_in_pairs_round_as_the_page_says(order, rank, rng):
    """docs/low_precision.md: about as much as any other layer in bfloat16, whatever the rank."""
    hardware = on("avx512", ("avx512_bf16",))
    op = LinearOp("layer", kronecker(rng, (96, 512), (8, 8), rank, 0.2))
    problem = problem_of(op, 32, PRECISIONS["bfloat16"])
    space = template("narrow_kronecker").space(problem, hardware)
    config = next(c for c in space if c["order"] == order)
    kernel, _ = kernel_of(op, "bfloat16", hardware, "narrow_kronecker", 32, config)
    x = rng.standard_normal((32, 512)).astype(np.float32)
    want = evaluate(op, x)
    got = run_kernel(kernel, hardware, x, (), want.shape)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-4 < error < 2 * float(ml_dtypes.finfo("bfloat16").eps)


@pytest.mark.parametrize(("precision", "features"), PATHS[:3])
@pytest.mark.parametrize(
    "epilogue", [(), ("bias", "relu"), ("bias", "gelu", "residual"), ("silu",)]
)
def test_epilogues(precision, features, epilogue, rng):
    hardware = on("avx512", features)
    op = LinearOp("layer", block_sparse(rng, (67, 50), (16, 8), 0.4), epilogue)
    check(op, precision, hardware, "narrow", 18, rng)


@pytest.mark.parametrize(("precision", "features"), PATHS[:3])
def test_symbolic_rows(precision, features, rng):
    hardware = on("avx512", features)
    op = LinearOp("layer", block_sparse(rng, (67, 50), (16, 8), 0.4), ("bias", "residual"))
    kernel, _ = kernel_of(op, precision, hardware, "narrow", None)
    run = load_kernel(kernel, hardware)
    for m in (0, 1, 2, 7, 8, 9, 33, 70):
        x = rng.standard_normal((m, 50)).astype(np.float32)
        tensors = epilogue_tensors(rng, op.epilogue, m, 67)
        want = wanted(op, precision, x, tensors, native=True)
        assert_close(run(x, tensors, (m, 67)), want, np.float32, 50, what=f"m={m}")


@pytest.mark.parametrize(("precision", "features"), PATHS[:3])
@pytest.mark.parametrize("form", ["dense", "block_sparse"])
def test_configurations(precision, features, form, rng):
    hardware = on("avx512", features)
    weight = block_sparse(rng, (67, 50), (16, 8), 0.4)
    op = LinearOp("layer", weight if form == "block_sparse" else weight.to_dense())
    space = template("narrow").space(problem_of(op, 37, PRECISIONS[precision]), hardware)
    assert len({tuple(c.items()) for c in space}) == len(space) > 4
    for config in space[:: max(1, len(space) // 6)]:
        check(op, precision, hardware, "narrow", 37, rng, config)


@pytest.mark.parametrize(("precision", "features"), PATHS[:2])
@pytest.mark.parametrize(
    "block", [(1, 4), (2, 2), (2, 4), (4, 4), (8, 8), (3, 8), (16, 16), (1, 64)]
)
def test_small_blocks(precision, features, block, rng):
    hardware = on("avx512", features)
    op = LinearOp("layer", block_sparse(rng, (67, 76), block, 0.3), ("bias", "gelu", "residual"))
    space = template("narrow_rows").space(problem_of(op, 70, PRECISIONS[precision]), hardware)
    if precision == "int8" and block == (2, 2):
        assert space == ()  # two inputs are half a word
        return
    for config in space[:: max(1, len(space) - 1)]:
        check(op, precision, hardware, "narrow_rows", 70, rng, config)


@pytest.mark.parametrize(("precision", "features"), PATHS[:2])
def test_small_blocks_with_symbolic_rows(precision, features, rng):
    hardware = on("avx512", features)
    op = LinearOp("layer", block_sparse(rng, (10, 20), (4, 4), 0.4), ("bias",))
    config = {"vectors": 2, "tasks": 2, "split": "outputs"}
    kernel, _ = kernel_of(op, precision, hardware, "narrow_rows", None, config)
    run = load_kernel(kernel, hardware)
    for m in (1, 7, 8, 31, 32, 33, 70):
        x = rng.standard_normal((m, 20)).astype(np.float32)
        tensors = epilogue_tensors(rng, op.epilogue, m, 10)
        want = wanted(op, precision, x, tensors, native=True)
        assert_close(run(x, tensors, (m, 10)), want, np.float32, 20, what=f"m={m}")


def integers(rng, shape, block, density, **ends):
    """A layer whose scales are all one: its result is its integer sums."""
    matrix = block_sparse(rng, shape, block, density)
    numbers = rng.integers(-127, 128, matrix.values.shape) * (matrix.values != 0)
    weight = type(matrix)(numbers.astype(np.int8), matrix.indices, matrix.indptr, shape)
    scale = np.ones(shape[0], np.float32)
    return LinearOp("layer", weight, quantization=Quantization(scale, "static", **ends))


@pytest.mark.parametrize("features", [("avx512_vnni",), ()])
@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 0), ("uint8", 131), ("int8", -7)])
@pytest.mark.parametrize("name", ["narrow", "narrow_rows"])
def test_integer_sums_are_exact(features, dtype, zero, name, rng):
    """Also where saturating 16-bit instructions would not be: full range, every product large."""
    hardware = on("avx512", features)
    op = integers(rng, (67, 64), (16, 8), 0.6, x_dtype=dtype, q_dtype=dtype, x_zero=zero)
    if not template(name).space(problem_of(op, 33, PRECISIONS["int8"]), hardware):
        assert (name, features) == ("narrow_rows", ())
        return
    kernel, _ = kernel_of(op, "int8", hardware, name, 33)
    limits = np.iinfo(dtype)
    x = rng.choice([limits.min, limits.max, zero, 1], (33, 64)).astype(dtype)
    sums = (x.astype(np.int64) - zero) @ op.weight.to_dense().astype(np.int64).T
    assert np.abs(sums).max() < 2**24  # float32 holds them
    np.testing.assert_array_equal(run_kernel(kernel, hardware, x, (), (33, 67)), sums)


@pytest.mark.parametrize("name", ["narrow", "narrow_rows"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_results_leave_in_eight_bits(name, dtype, rng):
    hardware = on("avx512", ("avx512_vnni",))
    op = integers(
        rng, (67, 64), (16, 8), 0.6, x_dtype="uint8", x_zero=3, y_dtype=dtype, y_scale=900.0,
        y_zero=17,
    )  # fmt: skip
    op = replace(op, epilogue=("bias", "relu"))
    kernel, _ = kernel_of(op, "int8", hardware, name, 33)
    x = rng.integers(0, 256, (33, 64)).astype(np.uint8)
    bias = rng.standard_normal(67).astype(np.float32)
    got = run_kernel(kernel, hardware, x, (bias,), (33, 67), dtype)
    want = evaluate(op, x, (bias,))
    assert want.dtype == got.dtype == dtype
    assert len(np.unique(want)) > 20
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("activation", ["row", "tensor", "static"])
@pytest.mark.parametrize(
    ("m", "k", "features"),
    [(1, 50, ()), (33, 47, ()), (5, 7, ()), (33, 200, ("avx512_vnni",))],
)
def test_activations_are_quantised_as_defined(activation, m, k, features, rng):
    hardware = on("avx512", features)
    weight = rng.integers(-127, 128, (24, k)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, 24).astype(np.float32)
    ends = {"x_scale": 0.05, "x_zero": 3, "q_dtype": "int8"} if activation == "static" else {}
    op = LinearOp("layer", weight, quantization=Quantization(scale, activation, **ends))
    kernel, _ = kernel_of(op, "int8", hardware, "narrow", m)
    x = (10 * rng.standard_normal((m, k))).astype(np.float32)
    x[0] = np.abs(x[0])  # a row with one sign
    if m > 2:
        x[2] = 0
    if activation == "static":
        x[-1, :2] = 1e30, -1e30
    got = run_kernel(kernel, hardware, x, (), (m, 24))
    q, s, z = op.quantization.quantize(x)
    sums = ((q - z) @ weight.astype(np.int32).T).astype(np.float32)
    np.testing.assert_allclose(got, sums * (s * scale), rtol=3e-7)


def test_quotients_are_numbers_before_they_are_integers(rng):
    """One multiplication merged with rounding would go the other way where these lie."""
    hardware = on("avx512", ("avx512_vnni",))
    inverse = np.float32(1) / (np.float32(1.7) / np.float32(255))
    x = rng.uniform(-0.8, 0.9, 4_000_000).astype(np.float32)
    merged = np.rint(x.astype(np.float64) * np.float64(inverse))
    x = x[np.rint(x * inverse) != merged][:62]
    assert len(x) > 8
    row = np.resize(np.append(np.float32([-0.8, 0.9]), x), (1, 64))
    weight = 127 * np.eye(64, dtype=np.int8)
    op = LinearOp("layer", weight, quantization=Quantization(np.ones(64, np.float32)))
    q, s, z = op.quantization.quantize(row)
    got = run_kernel(kernel_of(op, "int8", hardware, "narrow", 1)[0], hardware, row, (), (1, 64))
    np.testing.assert_allclose(got, (q - z) * np.float32(127) * s, rtol=3e-7)


@pytest.mark.parametrize(
    ("features", "precision", "instruction"),
    [
        (("avx512_bf16",), "bfloat16", "vdpbf16ps"),
        (("avx512_vnni",), "int8", "vpdpbusd"),
        ((), "int8", "vpmaddwd"),
        ((), "float16", "vcvtph2ps"),
    ],
)
def test_the_instruction_is_used(features, precision, instruction, rng):
    from bscompile.targets.cpu.hardware import hardware

    spec = hardware("avx512", 2)
    spec = replace(spec, features=(*spec.features, *features))
    name = "block_sparse_outputs" if precision == "float16" else "narrow"
    op = LinearOp("layer", block_sparse(rng, (64, 64), (16, 16), 0.5))
    code = assembly(kernel_of(op, precision, spec, name, 32)[0], spec)
    assert code.count(instruction) >= 8
    assert "bsc_" not in code  # what came in as LLVM IR is inlined

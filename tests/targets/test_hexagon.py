"""int8 on Hexagon's vectors, run by qemu-hexagon: exact sums, exact bytes, a whole model."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import bscompile
from bscompile import targets
from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import PRECISIONS, QuantizedMatrix
from bscompile.dialect.quantization import Quantization
from bscompile.errors import TargetError
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import problem_of
from bscompile.targets.hexagon.packing import LANES, Requantizer
from tests.targets.narrow_running import wanted
from tests.targets.static_running import needs, run_kernels, sparse_mlp
from tests.targets.test_kernels import block_sparse, epilogue_tensors
from tests.tolerance import assert_close

#: (shape, block or None for dense, density, rows, x, y, epilogue); x and y: float32 or 8 bits.
CASES = [
    ((128, 64), (16, 16), 0.3, 9, "uint8", "uint8", ("bias", "relu")),
    ((256, 128), (32, 32), 0.3, 7, "uint8", "uint8", ("bias",)),
    ((130, 47), (32, 32), 0.5, 1, "int8", "int8", ()),
    ((65, 50), (16, 8), 0.4, 2, "int8", "uint8", ("relu",)),
    ((40, 84), (16, 4), 1.0, 5, "float32", "uint8", ("bias",)),
    ((48, 33), (32, 8), 0.0, 1, "uint8", "uint8", ("bias",)),
    ((128, 64), (16, 16), 0.4, 3, "uint8", "float32", ("bias",)),
    ((67, 50), (32, 16), 0.5, 9, "float32", "float32", ("bias", "residual")),
    ((33, 40), (16, 16), 0.5, 2, "row", "float32", ("bias", "gelu")),
    ((200, 70), None, 1.0, 6, "uint8", "uint8", ("bias", "relu")),
    ((10, 84), None, 1.0, 1, "row", "float32", ()),
]


def layer(case, rng):
    """(op, x, tensors) of a case; scales that let y use most of its 256 steps."""
    (n, k), block, density, m, x_kind, y_kind, epilogue = case
    live = block_sparse(rng, (n, k), block or (1, 1), density).to_dense() != 0
    weight = (rng.integers(-127, 128, (n, k)) * live).astype(np.int8)
    q_dtype = x_kind if x_kind.endswith("int8") else "uint8"
    scale = rng.uniform(1e-3, 1e-2, n).astype(np.float32)
    spread = 0.03 * 0.006 * 73 * 73 * max(1.0, np.sqrt(k * density))
    if x_kind == "row":
        ends = Quantization(scale)
    else:
        x_zero = 3 if q_dtype == "int8" else 120
        ends = Quantization(
            scale, "static", "float32" if x_kind == "float32" else x_kind, q_dtype, 0.031,
            x_zero, y_kind, np.float32(spread / 40), 100 if y_kind == "uint8" else -7,
        )  # fmt: skip
    matrix = BlockSparseMatrix.from_dense(weight, block) if block else weight
    op = LinearOp("layer", matrix, epilogue, quantization=ends)
    if x_kind.endswith("int8"):
        low, high = (0, 256) if x_kind == "uint8" else (-128, 128)
        x = rng.integers(low, high, (m, k)).astype(x_kind)
    else:
        x = rng.standard_normal((m, k)).astype(np.float32)
    return op, x, epilogue_tensors(rng, epilogue, m, n)


def build(op, m, index=0):
    context = targets.resolve("hexagon")
    problem = problem_of(op, m, PRECISIONS["int8"])
    weight = QuantizedMatrix.of(op.weight, op.quantization)
    template = context.target.template(f"hvx_{problem.form}")
    space = template.space(problem, context.hardware)
    return template.build(problem, weight, space[index % len(space)], context.hardware)


@functools.cache
def suite():
    """(run, [(op, x, tensors, arrays)]) of all cases, linked once."""
    rng = np.random.default_rng(0)
    calls, layers = [], []
    for index, case in enumerate(CASES):
        op, x, tensors = layer(case, rng)
        kernel = build(op, None if index in (0, 7) else len(x), index)
        arrays = [x, *(np.ascontiguousarray(a) for _, a in kernel.operands), *tensors]
        y_dtype = op.quantization.y_dtype
        y = np.full((len(x), op.shape[0]), np.nan if y_dtype == "float32" else 77, y_dtype)
        calls.append((kernel.prim_func, arrays, y))
        layers.append((op, x, tensors, arrays))
    return run_kernels("hexagon", calls), layers


@needs("hexagon")
def test_kernels():
    run, layers = suite()
    results = run([arrays for *_, arrays in layers])
    for case, (op, x, tensors, _), got in zip(CASES, layers, results, strict=True):
        if op.quantization.y_dtype == "float32":
            want = wanted(op, "int8", x, tensors, native=True)
            assert_close(got, want, np.float32, op.shape[1], what=str(case))
        else:
            want = evaluate(op, x, tensors)
            np.testing.assert_array_equal(got, want, err_msg=str(case))
            assert case[2] == 0 or len(np.unique(got)) > 20, case


@needs("hexagon")
def test_every_weight_counts():
    run, layers = suite()
    before = run([arrays for *_, arrays in layers])
    changed = []
    for _, _, _, (x, words, *rest) in layers:
        words = words.copy()
        words.view(np.int8)[...] = np.where(words.view(np.int8) == 0, 0, words.view(np.int8) ^ 64)
        changed.append([x, words, *rest])
    for case, b, a in zip(CASES, before, run(changed), strict=True):
        assert (a != b).any() == (case[2] > 0), case


@pytest.mark.parametrize("largest", [300, 1 << 20])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 3e-4, 0.9])
def test_requantisation_in_integers_is_that_of_float(largest, size):
    rng = np.random.default_rng(0)
    factors = rng.uniform(size / 8, size, 64)
    requantizer = Requantizer.of(factors, largest)
    sums = rng.integers(-largest, largest + 1, (1000, 64))
    zero, bias = 5, rng.uniform(-3, 3, 64)
    unit = 2.0**requantizer.down
    units = np.rint((bias + zero + 0.5) * unit).astype(np.int64)
    got = requantizer.apply(sums, units, -128, 127)
    exact = sums * factors + bias + zero
    want = np.clip(np.floor(exact + 0.5), -128, 127)
    assert (got != want).mean() < 1e-3  # numbers that lie next to a half
    assert np.abs(got - np.clip(exact, -128, 127)).max() < 0.501


@pytest.mark.parametrize("factors", [[0.0, 0.0], [1.5]])
def test_factors_out_of_range_take_the_way_through_floats(factors):
    assert Requantizer.of(np.array(factors), 1000) is None


class Samples(CalibrationDataReader):
    def __init__(self):
        self._left = [{"x": inputs(seed)} for seed in range(4)]

    def get_next(self):
        return self._left.pop() if self._left else None


def inputs(seed):
    return np.random.default_rng(seed).standard_normal((3, 64)).astype(np.float32)


@needs("hexagon")
@pytest.mark.parametrize("kind", [QuantType.QUInt8, QuantType.QInt8])
def test_a_quantised_mlp_runs_whole(kind, tmp_path):
    plain, path = tmp_path / "mlp.onnx", tmp_path / "q.onnx"
    onnx.save(sparse_mlp(), plain)
    quantize_static(
        plain, path, Samples(), quant_format=QuantFormat.QDQ, activation_type=kind,
        weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    compiled = bscompile.build(str(path), "hexagon", output=tmp_path / "q.bsc")
    assert [layer.template for layer in compiled.report.layers] == ["hvx_block_sparse"] * 2
    with bscompile.load(tmp_path / "q.bsc") as model:
        got = model.run({"x": inputs(9)})["y"]
    reference = bscompile.build(str(path), "cpu", output=tmp_path / "cpu.bsc")
    assert reference.manifest.machine != compiled.manifest.machine
    with bscompile.load(tmp_path / "cpu.bsc") as model:
        np.testing.assert_array_equal(got, model.run({"x": inputs(9)})["y"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = session.run(None, {"x": inputs(9)})[0]
    assert np.abs(got - want).max() <= 2.1 * np.abs(want).max() / 127


@needs("hexagon")
def test_a_float_model_runs_in_scalar_code(tmp_path):
    proto = sparse_mlp()
    bscompile.build(proto, "hexagon", output=tmp_path / "mlp.bsc")
    with bscompile.load(tmp_path / "mlp.bsc") as model:
        got = model.run({"x": inputs(0)})["y"]
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(got, session.run(None, {"x": inputs(0)})[0], rtol=0, atol=2e-5)


def test_threads_are_refused():
    with pytest.raises(TargetError, match="hexagon programs run in one thread, got 4"):
        bscompile.build(sparse_mlp(), "hexagon", threads=4)


def test_other_blocks_are_left_to_the_planner():
    rng = np.random.default_rng(0)
    context = targets.resolve("hexagon")
    for block, taken in {(16, 16): True, (32, 4): True, (8, 8): False, (16, 6): False}.items():
        op = LinearOp("layer", block_sparse(rng, (64, 48), block, 0.5))
        problem = problem_of(op, 4, PRECISIONS["int8"])
        space = context.target.template("hvx_block_sparse").space(problem, context.hardware)
        assert bool(space) == taken
    assert LANES == 32

"""What is special about tf32: rounding in float32's storage, its fragments, factorized layers."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from bscompile import targets
from bscompile.compiler import CompileOptions, compile_model
from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import PRECISIONS, TF32, in_precision, precision_of, rounded
from bscompile.formats import KroneckerSum
from bscompile.targets.base import problem_of
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.planner import plan
from bscompile.verification import verify
from tests.targets.cuda import adapter
from tests.targets.cuda.conftest import block_sparse, kernel_for
from tests.targets.cuda.test_models import MODELS, model
from tests.targets.numeric_suite import Call
from tests.tolerance import assert_close

MACHINE = hardware("sm_80")


def test_numbers_are_rounded_to_the_nearest_of_eleven_bits(rng):
    x = np.exp2(rng.uniform(-60, 60, 4000)).astype(np.float32) * rng.choice([-1, 1], 4000)
    x = x.astype(np.float32)
    near = rounded(x, TF32)
    mantissa, exponent = np.frexp(x.astype(np.float64))
    want = np.ldexp(np.copysign(np.floor(np.abs(mantissa) * 2**11 + 0.5), x), exponent - 11)
    np.testing.assert_array_equal(near, want)
    assert near.dtype == np.float32
    np.testing.assert_array_equal(rounded(near, TF32), near)


def test_ties_go_away_from_zero_and_what_is_not_finite_stays():
    half = 2.0**-11
    given = np.array([1 + half, 1 - half / 4, -1 - half, math.inf, -math.inf, 0], np.float32)
    want = [1 + 2 * half, 1, -1 - 2 * half, math.inf, -math.inf, 0]
    np.testing.assert_array_equal(rounded(given, TF32), np.array(want, np.float32))
    several = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(rounded(several, TF32)).all()


@pytest.fixture(scope="module")
def layer():
    """(run, op, x): one kernel, called with an x and perhaps from edited source."""
    rng = np.random.default_rng(3)
    weight = block_sparse(rng, (64, 256), (16, 16), 0.5)
    x = rng.standard_normal((40, 256)).astype(np.float32)
    kernel, _ = kernel_for(
        MACHINE, "block_sparse_tensor_cores", weight, 40, "tf32", (), tile=32, rows=32
    )

    def run(x, edit=str):
        module = adapter.compile_module({"kernel": kernel.prim_func}, MACHINE, edit)
        return adapter.run(module["kernel"], Call(kernel, (x,), (40, 64)))

    return run, LinearOp("layer", weight), x


def test_the_error_against_float64_is_that_of_rounded_operands(layer):
    run, op, x = layer
    got, exact = run(x), evaluate(op, x)
    # Two operands of unit roundoff 2^-11 each, whose errors add up like a walk over the inputs.
    terms = np.sqrt(np.square(x) @ np.square(op.weight.to_dense().T.astype(np.float64)))
    error = np.abs(got - exact) / np.maximum(terms, 1e-30)
    assert error.max() < 6 * 2.0**-11
    assert error.max() > 2.0**-14  # and it is not float32
    assert_close(got, evaluate(in_precision(op, TF32), rounded(x, TF32)), np.float32, 256)


@pytest.mark.usefixtures("on_emulator")
def test_a_planted_fault_changes_the_result(layer):
    run, op, x = layer
    want = evaluate(in_precision(op, TF32), rounded(x, TF32))

    def swapped(source):
        """The second eight outputs get what the first ones should."""
        changed = str(source).replace(" + 2)))[0])", ")))[0])").replace("* 4) + 2)", "* 4) + 0)")
        assert changed != str(source)
        return changed

    assert np.abs(run(x, swapped) - want).max() > 1e-2


def test_layers_keep_float32_storage_and_say_tf32(rng):
    op = in_precision(LinearOp("layer", block_sparse(rng, (32, 64), (8, 8), 0.5)), TF32)
    assert op.weight.values.dtype == np.float32
    assert precision_of(op) == TF32
    posed = problem_of(op, 8, precision_of(op))
    assert (posed.dtype, posed.x_dtype) == ("tf32", "float32")
    assert precision_of(in_precision(op, PRECISIONS["float16"])) == np.float16


@pytest.mark.parametrize(("block", "rank", "stays"), [(8, 1, True), (32, 8, False)])
def test_factors_stay_in_float32_or_are_merged(block, rank, stays, rng):
    support = rng.random((1024 // block, 1024 // block)) < 0.1
    a = rng.standard_normal((rank, *support.shape)) * support
    b = rng.standard_normal((rank, block, block))
    op = LinearOp("layer", KroneckerSum(a.astype(np.float32), b.astype(np.float32)))
    choice = plan(op, 512, TF32, targets.resolve("cuda:sm_90"))
    assert (choice.form == "kronecker") == stays, choice.reason
    stored = in_precision(op.with_weight(choice.weight), TF32)
    assert precision_of(stored) == (PRECISIONS["float32"] if stays else TF32)
    if stays:
        assert "in float32: " in choice.reason
        assert "times as merged in tf32" in choice.reason


def test_the_pass_over_x_rounds_as_packing_does(rng):
    import tvm
    from tvm import relax

    from bscompile.targets.lowering.narrowing import narrowed

    bits = rng.integers(0, 2**32, 4096, np.uint32)
    given = np.append(bits.view(np.float32), np.array([np.inf, -np.inf, np.nan, 0], np.float32))
    x = relax.Var("x", relax.TensorType((len(given),), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        builder.emit_func_output(narrowed(builder, x, "tf32"))
    machine = relax.VirtualMachine(relax.build(builder.get(), "llvm"), tvm.cpu())
    got = machine["main"](tvm.runtime.tensor(given)).numpy()
    np.testing.assert_array_equal(got, rounded(given, TF32))


@pytest.mark.usefixtures("on_emulator")
def test_a_whole_model_is_verified_and_what_it_lost_stated(rng, tmp_path):
    text, shapes, _ = MODELS["perceptron"]
    onnx.save(model(text, rng, shapes), tmp_path / "model.onnx")
    options = CompileOptions(target="cuda:sm_80", precision="tf32", typical_rows=8192)
    compiled = compile_model(onnx.load(tmp_path / "model.onnx"), options)
    layers = compiled.report.layers
    assert [layer.dtype for layer in layers] == ["tf32"] * 2
    assert all(layer.template.endswith("_tensor_cores") for layer in layers)
    assert all("cuBLAS" not in layer.reason for layer in layers)
    found = verify(compiled.save(tmp_path / "model.bsc"), tmp_path / "model.onnx", samples=2)
    assert found.passed
    assert "accuracy lost (2 in tf32)" in found.lost
    assert 1e-6 < found.worst.error / found.worst.scale < 2e-3

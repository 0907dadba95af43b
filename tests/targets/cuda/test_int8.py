"""Layers of quantised models: static and dynamic, x and y in 8 bits, to the bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bscompile
from bscompile.compiler import CompileOptions, compile_model
from bscompile.dialect import evaluate
from bscompile.dialect.precision import PRECISIONS, kernel_weight
from bscompile.dialect.quantization import Quantization
from bscompile.targets.base import problem_of
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.templates import TEMPLATES
from tests.end_to_end.test_low_precision import TEXT, WEIGHTS, quantized
from tests.passes.helpers import dense, model_from, run_ort
from tests.targets.cuda import adapter
from tests.targets.numeric_suite import Call
from tests.targets.test_hexagon import CASES, layer
from tests.tolerance import assert_close


def by_tensor(op):
    """The layer with x quantised as DynamicQuantizeLinear does."""
    return op.__class__(
        op.name, op.weight, op.epilogue, op.conv, Quantization(op.quantization.scale, "tensor")
    )


def test_every_kind_of_quantisation_is_right():
    machine, dtype = hardware("sm_90"), PRECISIONS["int8"]
    ops = [layer(case, np.random.default_rng(number)) for number, case in enumerate(CASES)]
    ops.append((by_tensor(ops[8][0]), *ops[8][1:]))
    calls = {}
    for number, (op, x, tensors) in enumerate(ops):
        problem = problem_of(op, len(x), dtype)
        for template in TEMPLATES:
            if space := template.space(problem, machine):
                config = space[3 * number % len(space)]
                kernel = template.build(problem, kernel_weight(op), config, machine)
                name = f"{template.name}{number}"
                call = Call(kernel, (x, *tensors), (len(x), problem.n))
                calls[name] = call, problem, evaluate(op, x, tensors)
    assert len(calls) == 2 * len(ops)
    module = adapter.compile_module(
        {n: c.kernel.prim_func for n, (c, *_) in calls.items()}, machine
    )
    for name, (call, problem, want) in calls.items():
        got = adapter.run(module[name], call, problem.y_dtype)
        if problem.y_dtype == "float32":
            assert_close(got, want, np.float32, problem.k, what=name)
        else:  # float32 arithmetic may differ where a quotient lies half between integers
            steps = np.abs(got.astype(int) - want.astype(int))
            assert steps.max() <= 1, name
            assert (steps > 0).mean() < 0.01, name


@pytest.mark.usefixtures("on_emulator")
@pytest.mark.parametrize("how", ["QUInt8", "dynamic"])
def test_models_of_the_quantizer_stay_in_int8(how, tmp_path):
    source, path = tmp_path / "model.onnx", tmp_path / "q.onnx"
    onnx.save(model_from(TEXT, WEIGHTS), source)
    quantized(source, path, how)
    x = dense(17, 96, seed=77)
    (want,) = run_ort(onnx.load(path), {"x": x})
    compiled = compile_model(onnx.load(path), CompileOptions(target="cuda:sm_90"))
    assert [layer.dtype for layer in compiled.report.layers] == ["int8"] * 2
    with bscompile.load(compiled.save(tmp_path / "q.bsc")) as loaded:
        got = loaded.run({"x": x})["y"]
    limit = 1e-5 if how == "dynamic" else 2.1 / 127  # eight bits leave: one may flip
    assert np.abs(got - want).max() < limit * np.abs(want).max()

"""Products in half precision: tiles that are held and multiplied in float16, summed in float32.

One nest serves every target with such a type. It runs by WebGPU where the adapter has it, and by
OpenCL on devices with cl_khr_fp16; the OpenCL C is also read by clang, which needs no device.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from bscompile import targets
from bscompile.devices import opencl as opencl_device
from bscompile.dialect import evaluate
from bscompile.dialect.precision import PRECISIONS, in_precision, kernel_weight
from bscompile.targets.base import problem_of
from bscompile.targets.gpu.limits import HALF, HALF_BITS
from bscompile.targets.gpu.source import device_code
from bscompile.targets.gpu.workspace import lift_workspace
from bscompile.targets.opencl.hardware import tvm_target
from tests.targets.numeric_suite import Case, layer
from tests.targets.opencl.adapter import missing_device
from tests.targets.webgpu.adapter import WebGPUAdapter
from tests.tolerance import assert_close

CASES = [
    Case("dense", (65, 47), 9, epilogue=("bias", "relu")),
    Case("dense", (10, 84), 1),
    Case("block_sparse", (130, 97), 1, (16, 16), 0.4, ("bias",)),
    Case("block_sparse", (65, 47), 18, (8, 8), 0.4, ("silu", "bias")),
    Case("block_sparse", (67, 50), 9, (4, 8), 0.5, ("residual",)),
    Case("block_sparse", (96, 65), 37, (32, 32), 1.0),
    Case("block_sparse", (40, 30), 2, (12, 7), 0.0, ("bias",)),
    Case("block_sparse", (48, 64), 33, (16, 16), 0.5, ("gelu",)),
]


def no_half_device():
    if reason := missing_device():
        return reason
    here = opencl_device.limits()
    return "" if "cl_khr_fp16" in here.extensions else f"{here.name} has no cl_khr_fp16"


def needs(reason):
    return pytest.mark.skipif(bool(reason), reason=reason or "it is here")


WHERE = [
    pytest.param("webgpu", marks=needs(WebGPUAdapter().missing()), id="webgpu"),
    pytest.param("opencl", marks=needs(no_half_device()), id="opencl"),
]


def built(case, hardware, number, change=0.0):
    """(PrimFunc of a kernel that multiplies in float16, its arrays before y, what y should be)."""
    rng, dtype = np.random.default_rng(number), PRECISIONS["float16"]
    op = in_precision(layer(case, rng), dtype)
    x = rng.standard_normal((case.rows, op.shape[1])).astype(np.float32)
    shapes = {"bias": (op.shape[0],), "residual": (case.rows, op.shape[0])}
    tensors = tuple(
        rng.standard_normal(shapes[step]).astype(np.float32)
        for step in case.epilogue
        if step in shapes
    )
    problem = problem_of(op, case.rows, dtype)
    template = targets.resolve("webgpu").target.template(case.form)
    configs = [c for c in template.space(problem, hardware) if c.get("multiply") == "float16"]
    config = configs[3 * number % len(configs)]
    kernel = template.build(problem, kernel_weight(op), config, hardware)
    operands = [np.array(array) for _, array in kernel.operands]
    if change:
        values = operands[0].reshape(-1)
        values[np.flatnonzero(values)[5]] += change
    arrays = [x, *map(np.ascontiguousarray, operands), *tensors]
    return kernel.prim_func, arrays, evaluate(op, x, tensors)


@pytest.mark.parametrize("target", WHERE)
def test_they_are_right_to_half_precision(target):
    context = targets.resolve(target)
    hardware = context.hardware.extended("float16")
    for number, case in enumerate(CASES):
        func, arrays, wanted = built(case, hardware, number)
        kernel = context.target.compile_kernel(func, hardware)
        got = kernel.run(arrays, np.full(wanted.shape, np.nan, np.float32))
        assert_close(got, wanted, np.float16, case.shape[1], what=str(case))
        if number in (0, 3, 7):
            _, changed, _ = built(case, hardware, number, change=8)
            other = kernel.run(changed, np.full(wanted.shape, np.nan, np.float32))
            assert np.abs(other - got).max() > 1e-2, case


def source_of(case, *features):
    hardware = replace(targets.resolve("opencl:any").hardware, features=features)
    func, _ = lift_workspace(built(case, hardware, 0)[0])
    return "\n".join(device_code({"kernel": func}, tvm_target(hardware)).sources.values())


def test_opencl_multiplies_and_adds_halves():
    text = source_of(CASES[5], HALF)
    assert "cl_khr_fp16 : enable" in text
    assert "__local half xs" in text
    assert "half parts" in text
    assert "convert_float(parts" in text  # slices are summed in float32


@pytest.mark.parametrize("case", [CASES[0], CASES[7]], ids=str)
def test_clang_reads_the_opencl(case, tmp_path):
    clang = next(filter(None, map(shutil.which, ("clang", "clang-19", "clang-15", "clang-14"))), "")
    if not clang:
        pytest.skip("clang is not installed; PoCL brings it")
    path = tmp_path / "kernel.cl"
    path.write_text(source_of(case, HALF))
    command = [clang, "-x", "cl", "-cl-std=CL1.2", "--target=spir64", "-Xclang",
               "-finclude-default-header", "-Werror", "-fsyntax-only", str(path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_device_without_the_type_is_offered_them():
    hardware = replace(targets.resolve("opencl:any").hardware, features=(HALF_BITS,))
    rng, dtype = np.random.default_rng(0), PRECISIONS["float16"]
    op = in_precision(layer(CASES[5], rng), dtype)
    template = targets.resolve("opencl:any").target.template("block_sparse")
    space = template.space(problem_of(op, 37, dtype), hardware)
    assert space
    assert not any("multiply" in config for config in space)


def test_a_device_with_twice_the_rate_is_given_them_first():
    any_device = targets.resolve("opencl:any").hardware
    rng, dtype = np.random.default_rng(0), PRECISIONS["float16"]
    op = in_precision(layer(Case("block_sparse", (256, 256), 128, (16, 16), 0.5), rng), dtype)
    problem = problem_of(op, 128, dtype)
    template = targets.resolve("opencl:any").target.template("block_sparse")
    first = []
    for gain in (1, 2):
        peak = any_device.peak_gflops["float32"]
        peaks = {"float32": peak, "float16": gain * peak}
        hardware = replace(any_device, features=(HALF,), peak_gflops=peaks)
        first.append(template.space(problem, hardware)[0].get("multiply"))
    assert first == [None, "float16"]

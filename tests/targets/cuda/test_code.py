"""Generated code for every architecture: it compiles, and holds the instructions that are meant."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bscompile.compiler import CompileOptions, compile_model
from bscompile.errors import TargetError
from bscompile.targets.cuda import TARGET
from bscompile.targets.cuda import compile as compiling
from bscompile.targets.cuda.build import CUDA_KERNELS, compile_kernel, cuda_source
from bscompile.targets.cuda.compile import compile_source, to_ptx
from bscompile.targets.cuda.hardware import hardware
from tests.targets.cuda.conftest import block_sparse, kernel_for

MMA = "mma.sync.aligned.m16n8k16.row.col.f32.{}.{}.f32"
FAMILIES = {
    "block_sparse_tensor_cores": (
        "bfloat16",
        [MMA.format("bf16", "bf16"), "ldmatrix", "cp.async.cg"],
    ),
    "block_sparse_tensor_cores int8": (
        "int8",
        ["mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32", "ldmatrix", "cp.async.cg"],
    ),
    "dense_few_rows int8": ("int8", ["dp4a.u32.s32", "shfl.sync.bfly", "ld.global.v4"]),
    "dense_tensor_cores": ("float16", [MMA.format("f16", "f16"), "ldmatrix", "cp.async.cg"]),
    "block_sparse_cuda_cores": ("float32", ["fma.rn.f32", "bar.sync", "st.shared"]),
    "block_sparse_few_rows": ("bfloat16", ["shfl.sync.bfly", "ld.global.v4", "fma.rn.f32"]),
}


def source_of(rng, template, dtype, machine):
    weight = block_sparse(rng, (96, 256), (16, 16), 0.5)
    if template.startswith("dense"):
        weight = weight.to_dense()
    kernel, _ = kernel_for(
        machine, template.split()[0], weight, None, dtype, ("bias", "gelu", "residual")
    )
    return cuda_source(compile_kernel(kernel.prim_func, machine))


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize("template", FAMILIES)
def test_the_meant_instructions_are_there(template, rng, monkeypatch):
    dtype, wanted = FAMILIES[template]
    source = source_of(rng, template, dtype, hardware("sm_80"))
    ptx = to_ptx(source, "sm_80")
    missing = [
        text
        for text in wanted
        if not re.search(re.escape(text).replace("global", "global(.nc)?"), ptx)
    ]
    assert not missing


@pytest.mark.usefixtures("nvcc")
def test_one_fat_binary_holds_several_architectures(rng):
    source = source_of(rng, "block_sparse_tensor_cores", "bfloat16", hardware("sm_80"))
    one = compile_source(source, ("sm_80",))
    several = compile_source(source, ("sm_80", "sm_90", "sm_120"))
    assert len(several) > 1.5 * len(one)


@pytest.mark.usefixtures("nvcc")
def test_source_that_is_refused_is_one_line():
    with pytest.raises(TargetError, match=r"nvcc failed: .*error") as caught:
        compile_source("int broken(", ("sm_90",))
    assert "\n" not in str(caught.value)


def test_nvrtc_takes_the_place_of_nvcc(rng, monkeypatch):
    if compiling._nvrtc_library() is None or not compiling._headers():
        pytest.skip("NVRTC is not installed")
    monkeypatch.setattr(compiling, "find_nvcc", lambda: None)
    source = source_of(rng, "block_sparse_few_rows", "bfloat16", hardware("sm_90"))
    assert compiling.compiler() == "nvrtc"
    assert compile_source(source, ("sm_90",)).startswith(b"\x7fELF")


def test_without_a_compiler_the_next_step_is_named(monkeypatch):
    monkeypatch.setattr(compiling, "find_nvcc", lambda: None)
    monkeypatch.setattr(compiling, "_nvrtc_library", lambda: None)
    with pytest.raises(TargetError, match=r"needs nvcc or NVRTC.*install the CUDA 13 toolkit"):
        compile_source("// nothing is installed", ("sm_90",))


def test_detection_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("bscompile.targets.cuda.compiler", lambda: None)
    monkeypatch.setattr("bscompile.targets.cuda.device", lambda: None)
    found = TARGET.detect()
    assert not found.compiles
    assert not found.runs
    assert "nvcc" in found.install
    assert "GPU" in found.install


@pytest.mark.usefixtures("nvcc")
def test_an_artifact_is_built_here_and_runs_only_where_a_gpu_is(rng, tmp_path):
    from bscompile.targets.cuda.hardware import device

    if device() is not None:
        pytest.skip("a GPU is here")
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]>'
        "m (float[4, 32] x) => (float[4, 16] y) { y = MatMul(x, w) }"
    )
    weight = rng.standard_normal((32, 16)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    compiled = compile_model(proto, CompileOptions(target="cuda:sm_80"))
    assert compiled.members[CUDA_KERNELS]
    path = compiled.save(tmp_path / "m.bsc")
    code = f"import bscompile; bscompile.load({str(path)!r})"  # no emulated driver is there
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "TargetError: this model runs on an NVIDIA GPU, and no driver for one is here" in last

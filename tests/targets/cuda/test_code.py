"""Generated code for every architecture: it compiles, and holds the instructions that are meant."""

from __future__ import annotations

import re
import struct
import subprocess
import sys

import numpy as np
import onnx
import pytest
import tvm
import tvm_ffi
from onnx import numpy_helper

from bscompile.compiler import CompileOptions, compile_model
from bscompile.errors import TargetError
from bscompile.formats import KroneckerSum
from bscompile.targets.cpu.code.tensors import Tensor
from bscompile.targets.cuda import TARGET, nvcc, nvrtc
from bscompile.targets.cuda import compile as compiling
from bscompile.targets.cuda.build import CUDA_KERNELS, cuda_source
from bscompile.targets.cuda.compile import compile_source, number, to_ptx
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.kernels.code import attention
from bscompile.targets.cuda.pipeline import PASS_CONFIG, TIR_PIPELINE, cuda_target
from tests.targets.cuda.conftest import block_sparse, kernel_for

MMA = "mma.sync.aligned.m16n8k16.row.col.f32.{}.{}.f32"
QKV = (("q", "bhsd"), ("k", "bhtd"), ("v", "bhte"), ("out", "bhse"))
FAMILIES = {
    "block_sparse_tensor_cores": (
        "bfloat16",
        [MMA.format("bf16", "bf16"), "ldmatrix", "cp.async.cg"],
    ),
    "block_sparse_tensor_cores int8": (
        "int8",
        ["mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32", "ldmatrix", "cp.async.cg"],
    ),
    "block_sparse_tensor_cores tf32": (
        "tf32",
        ["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "ldmatrix", "cp.async.cg"],
    ),
    "dense_few_rows int8": ("int8", ["dp4a.u32.s32", "shfl.sync.bfly", "ld.global.v4"]),
    "kronecker_tensor_cores": ("float16", [MMA.format("f16", "f16"), "cp.async.cg", "fma.rn.f32"]),
    "dense_tensor_cores": ("float16", [MMA.format("f16", "f16"), "ldmatrix", "cp.async.cg"]),
    "block_sparse_cuda_cores": ("float32", ["fma.rn.f32", "bar.sync", "st.shared"]),
    "block_sparse_few_rows": ("bfloat16", ["shfl.sync.bfly", "ld.global.v4", "fma.rn.f32"]),
}


@pytest.fixture(scope="module")
def source():
    """One text with a kernel of every family, generated once."""
    rng, machine = np.random.default_rng(0), hardware("sm_80")
    functions = {}
    for family, (dtype, _) in FAMILIES.items():
        weight = block_sparse(rng, (96, 256), (16, 16), 0.5)
        if family.startswith("dense"):
            weight = weight.to_dense()
        if family.startswith("kronecker"):
            a, b = (rng.standard_normal(sides) for sides in ((2, 6, 16), (2, 16, 16)))
            weight = KroneckerSum(a.astype(np.float32), b.astype(np.float32))
        steps = ("bias", "gelu", "residual")
        kernel, _ = kernel_for(machine, family.split()[0], weight, None, dtype, steps)
        functions[family.replace(" ", "_")] = kernel.prim_func
    for dtype in ("float16", "float32"):
        tensors = [Tensor(name, axes, (2, 4, 50, 64)) for name, axes in QKV]
        functions[f"attention_{dtype}"] = attention.generate(
            *tensors[:3], None, tensors[3], scale=1.0, multiplied=dtype, shared_bytes=160 << 10
        )
    return kernels_source(functions, machine)


def kernels_source(functions, machine):
    """The CUDA source of PrimFuncs, compiled by nobody."""
    from tests.targets.cuda.adapter import CALLBACK

    before = tvm_ffi.get_global_func(CALLBACK, allow_missing=True)
    tvm_ffi.register_global_func(CALLBACK, lambda *_: b"", override=True)
    target = cuda_target(machine)
    module = tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})
    try:
        with target, tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
            return cuda_source(tvm.compile(module, target=target, tir_pipeline=TIR_PIPELINE))
    finally:
        if before is not None:
            tvm_ffi.register_global_func(CALLBACK, before, override=True)


@pytest.fixture(scope="module")
def ptx(cuda_compiler, source):
    """Kernel -> its PTX for sm_80."""
    parts = re.split(r"\.visible \.entry (\w+)", to_ptx(source, "sm_80"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_attention_is_on_the_cores_that_are_meant(ptx):
    halves = ptx["attention_float16_kernel"]
    for text in (MMA.format("f16", "f16"), "ldmatrix.sync.aligned.m8n8.x4.trans", "cvt.rn.f16x2"):
        assert text in halves
    assert "fma.rn.f32" in ptx["attention_float32_kernel"]
    assert "mma.sync" not in ptx["attention_float32_kernel"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_meant_instructions_are_there(family, ptx):
    name = family.replace(" ", "_") + "_kernel"
    text = "".join(body for entry, body in ptx.items() if re.fullmatch(f"{name}(_\\d)?", entry))
    wanted = [re.escape(part).replace("global", "global(.nc)?") for part in FAMILIES[family][1]]
    assert not [pattern for pattern in wanted if not re.search(pattern, text)]


def contents(fatbin):
    """(PTX or machine code, architecture) of each part of a fat binary, by its headers."""
    magic, _, header, size = struct.unpack_from("<IHHQ", fatbin)
    assert magic == 0xBA55ED50
    found, at = [], header
    while at < header + size:
        kind, _, head, length = struct.unpack_from("<HHIQ", fatbin, at)
        found.append(({1: "ptx", 2: "code"}[kind], struct.unpack_from("<I", fatbin, at + 28)[0]))
        at += head + length
    return found


def test_every_family_compiles_for_old_new_and_newest_and_falls_back_to_ptx(cuda_compiler, source):
    newest = nvcc.architectures(cuda_compiler)[-1] if cuda_compiler != "nvrtc" else "sm_121"
    made = contents(compile_source(source, (newest, "sm_90a", "sm_80")))
    numbers = [number("sm_80"), number("sm_90a"), number(newest)]
    assert sorted(made) == [("code", one) for one in numbers] + [("ptx", 80)]


def test_an_architecture_that_the_compiler_does_not_know_is_named(cuda_compiler):
    with pytest.raises(TargetError, match=r"does not know sm_999"):
        compile_source("// nothing", ("sm_999",))


@pytest.mark.usefixtures("cuda_compiler")
def test_source_that_is_refused_is_one_line():
    with pytest.raises(TargetError, match=r"(nvcc|NVRTC) failed: .*error") as caught:
        compile_source("int broken(", ("sm_90",))
    assert "\n" not in str(caught.value)


def test_nvrtc_takes_the_place_of_nvcc(monkeypatch):
    if not nvrtc.installed():
        pytest.skip("NVRTC is not installed: pip install '.[cuda]'")
    monkeypatch.setattr(nvcc, "find", lambda: None)
    text = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] = 1; }'
    assert compiling.compiler() == "nvrtc"
    made = contents(compile_source(text, ("sm_90", "sm_80")))
    assert sorted(made) == [("code", 80), ("code", 90), ("ptx", 80)]
    with pytest.raises(TargetError, match="does not know sm_999"):
        compile_source(text, ("sm_999",))


def test_without_a_compiler_the_next_step_is_named(monkeypatch):
    monkeypatch.setattr(nvcc, "find", lambda: None)
    monkeypatch.setattr(nvrtc, "installed", lambda: False)
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


@pytest.mark.usefixtures("cuda_compiler")
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
    compiled = compile_model(proto, CompileOptions(target="cuda:sm_90+sm_80"))
    made = contents(compiled.members[CUDA_KERNELS])
    assert sorted(made) == [("code", 80), ("code", 90), ("ptx", 80)]
    assert compiled.manifest.isa == "sm_90+sm_80"
    assert compiled.report.isa == "sm_90+sm_80"
    path = compiled.save(tmp_path / "m.bsc")
    code = f"import bscompile; bscompile.load({str(path)!r})"  # no emulated driver is there
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "TargetError: this model runs on an NVIDIA GPU, and no driver for one is here" in last

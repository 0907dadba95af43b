"""Runs one low-precision kernel on this machine, and says what exactly it should give."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import ml_dtypes
import numpy as np

from bscompile.dialect import evaluate
from bscompile.dialect.precision import PRECISIONS, QuantizedMatrix, in_precision
from bscompile.targets.base import problem_of
from tests.targets.running import unaligned

#: (precision, features beyond AVX-512's baseline): each takes other instructions.
PATHS = [
    ("bfloat16", ("avx512_bf16",)),
    ("int8", ("avx512_vnni",)),
    ("int8", ()),
    ("bfloat16", ()),
    ("float16", ()),
]


@cache
def machine(isa, features):
    """This machine as a build for those features sees it; None where it lacks one."""
    from bscompile.devices.cpu import cpu_features
    from bscompile.targets.cpu.hardware import hardware

    spec = hardware(isa, 2)
    return (
        replace(spec, features=(*spec.features, *features))
        if {*spec.features, *features} <= cpu_features()
        else None
    )


def template(name):
    from bscompile.targets.cpu.templates import TEMPLATES

    return {t.name: t for t in TEMPLATES}[name]


def kernel_of(op, precision, hardware, name, m, config=None):
    """(kernel, configuration) of the named template."""
    dtype = PRECISIONS[precision]
    problem = problem_of(op, m, dtype)
    config = config or template(name).space(problem, hardware)[0]
    weight = op.weight
    if op.quantization is not None:
        weight = QuantizedMatrix.of(weight, op.quantization)
    return template(name).build(problem, weight, config, hardware), config


def run_kernel(kernel, hardware, x, tensors, shape, y_dtype=np.float32):
    """y of one call."""
    return load_kernel(kernel, hardware)(x, tensors, shape, y_dtype)


def load_kernel(kernel, hardware):
    """The compiled kernel as a function (x, tensors, y's shape, y's dtype) -> y."""
    import tvm
    import tvm_ffi

    from bscompile.targets.cpu.hardware import llvm_target
    from bscompile.targets.tir_passes import TIR_PIPELINE

    func = kernel.prim_func
    symbol = func.attrs["global_symbol"]
    module = tvm.IRModule({symbol: func})
    compiled = tvm.compile(module, target=llvm_target(hardware), tir_pipeline=TIR_PIPELINE)
    compiled = compiled.jit()[symbol]
    operands = [tvm.runtime.tensor(np.ascontiguousarray(array)) for _, array in kernel.operands]

    def run(x, tensors, shape, y_dtype=np.float32):
        held = [a if a.dtype != np.float32 else unaligned(a) for a in (x, *tensors)]
        y = np.zeros(shape, y_dtype)
        y = unaligned(np.full(shape, np.nan, np.float32)) if y.dtype == np.float32 else y
        first, *rest = [tvm_ffi.from_dlpack(a) for a in (*held, y)]
        compiled(first, *operands, *rest)
        return y

    return run


def wanted(op, precision, x, tensors, native):
    """The result in float64 of the operands as the kernel rounds them."""
    if native and precision == "bfloat16":
        x = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    return evaluate(in_precision(op, PRECISIONS[precision]), x, tensors)


def assembly(kernel, hardware):
    """The kernel's code as text."""
    import tvm

    from bscompile.targets.cpu.hardware import llvm_target
    from bscompile.targets.tir_passes import TIR_PIPELINE

    module = tvm.IRModule({"kernel": kernel.prim_func.with_attr("global_symbol", "kernel")})
    compiled = tvm.compile(module, target=llvm_target(hardware), tir_pipeline=TIR_PIPELINE)
    return compiled.mod.inspect_source("asm")

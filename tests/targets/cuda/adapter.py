"""Kernels of the cuda target: on this machine's GPU, or on the emulator where it has none."""

from __future__ import annotations

import numpy as np

from bscompile.dialect import evaluate
from bscompile.dialect.precision import PRECISIONS, precision_of, rounded
from bscompile.formats import KroneckerSum
from tests.targets.cuda import emulator
from tests.targets.numeric_suite import Adapter

CALLBACK = "tvm_callback_cuda_compile"


def compile_module(functions, hardware, edit=str):
    """PrimFuncs by name -> a module with them, compiled for the GPU or the emulator.

    ``edit`` may change the generated source on the way.
    """
    import tvm
    import tvm_ffi

    from bscompile.targets.cuda.compile import compile_source
    from bscompile.targets.cuda.hardware import architectures
    from bscompile.targets.cuda.pipeline import PASS_CONFIG, TIR_PIPELINE, cuda_target

    def compile_cuda(source, *_target):
        if emulated():
            return emulator.compile_source(edit(source))
        return compile_source(edit(source), architectures(hardware))

    ready()
    tvm_ffi.register_global_func(CALLBACK, compile_cuda, override=True)
    target = cuda_target(hardware)
    module = tvm.IRModule(
        {name: func.with_attr("global_symbol", name) for name, func in functions.items()}
    )
    with target, tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
        return tvm.compile(module, target=target, tir_pipeline=TIR_PIPELINE)


def emulated():
    """Whether kernels run on the emulator here."""
    from bscompile.targets.cuda.hardware import device

    return device() is None


def ready():
    """Load what runs them."""
    if emulated():
        emulator.start()
    else:
        from bscompile.runtime.cuda import load_cuda

        load_cuda()


def run(function, call, y_dtype="float32"):
    """y of one kernel; what it leaves unwritten is NaN, or 7 in integers."""
    import tvm

    gpu = tvm.cuda(0)
    x, *others = call.arrays
    if call.kernel.x_dtype:
        x = rounded(x, PRECISIONS[call.kernel.x_dtype])
    nothing = np.nan if y_dtype == "float32" else 7
    y = tvm.runtime.tensor(np.full(call.shape, nothing, y_dtype), gpu)
    function(*(tvm.runtime.tensor(array, gpu) for array in (x, *others)), y)
    return y.numpy()


class CudaAdapter(Adapter):
    """All kernels in one module."""

    target = "cuda"
    dtypes = ("float32", "tf32", "float16", "bfloat16", "int8")

    def missing(self):
        return ""

    def run(self, calls):
        from tvm_ffi import structural_hash

        # Kernels of equal code, such as those of a changed weight, are compiled once.
        names = [f"kernel{structural_hash(call.kernel.prim_func) & (2**64 - 1)}" for call in calls]
        functions = {name: call.kernel.prim_func for name, call in zip(names, calls, strict=True)}
        module = compile_module(functions, self.context.hardware)
        return [run(module[name], call) for name, call in zip(names, calls, strict=True)]

    def reference(self, template, op, x, tensors):
        if (
            template.endswith(("tensor_cores", "wgmma")) and op.quantization is None
        ):  # they take both sides in the dtype of W
            dtype = precision_of(op)
            x = rounded(x, dtype).astype(np.float32)
            if isinstance(op.weight, KroneckerSum):  # whose blocks are made in that dtype
                op = op.with_weight(rebuilt(op.weight).astype(dtype))
        return evaluate(op, x, tensors)


def rebuilt(weight):
    """W in float32, its terms added one after the other as the kernels do."""
    total = np.zeros(weight.shape, np.float32)
    for a, b in zip(weight.a, weight.b, strict=True):
        total += np.kron(a.astype(np.float32), b.astype(np.float32))
    return total


ADAPTERS = [CudaAdapter()]

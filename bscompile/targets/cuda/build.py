"""From a lowered module to host code, CUDA source and machine code for the GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bscompile.artifact.dense_layers import MEMBER as DENSE_LAYERS
from bscompile.errors import ModelError, TargetError
from bscompile.targets.cpu.build import LIBRARY, find_linker
from bscompile.targets.cuda.carried_code import CarriedKernel
from bscompile.targets.cuda.compile import compile_source
from bscompile.targets.cuda.hardware import architectures

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec, TargetContext
    from bscompile.targets.lowering import Lowered

#: The artifact members beside the host's library: what was compiled, and into what.
CUDA_SOURCE = "code/kernels.cu"
CUDA_KERNELS = "code/kernels.fatbin"
_CALLBACK = "tvm_callback_cuda_compile"


def build(lowered: Lowered, context: TargetContext) -> dict[str, bytes]:
    """Compile for the context's GPU; needs neither a GPU nor a driver.

    Args:
        lowered: The model as one Relax module.
        context: What it was lowered for.

    Returns:
        The host's shared library, the generated source, its fat binary, and which dense layers
        may run on cuBLAS.

    Raises:
        TargetError: nvcc and NVRTC are missing or refuse the source, or no linker is installed.
        ModelError: TVM cannot generate code for an operation of the model.
    """
    linker = find_linker()
    executable, dense = compile_module(lowered.module, context)
    source = cuda_source(executable)
    with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
        path = Path(folder) / "model.so"
        try:
            executable.export_library(str(path), cc=linker)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1:]
            raise TargetError(
                f"{linker} could not link the model's code: {''.join(last)}"
            ) from error
        return {
            LIBRARY: path.read_bytes(),
            CUDA_SOURCE: source.encode(),
            CUDA_KERNELS: compile_source(source, architectures(context.hardware))
            if source
            else b"",
            DENSE_LAYERS: dense,
        }


def compile_module(module: Any, context: TargetContext) -> tuple[Any, bytes]:
    """Run the whole pass order and the code generators.

    Returns:
        A tvm.relax.VMExecutable, and what ``either_way.listed`` says.

    Raises:
        ModelError: TVM cannot generate code for an operation of the model.
    """
    import tvm

    from bscompile.targets.cuda.either_way import listed
    from bscompile.targets.cuda.pipeline import PASS_CONFIG, TIR_PIPELINE, cuda_target, passes

    target = cuda_target(context.hardware)
    try:
        with (
            _compiled_by_us(context.hardware),
            target,
            tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG),
        ):
            for step in passes(target):
                module = step(module)
            built = tvm.relax.build(module, target, relax_pipeline=None, tir_pipeline=TIR_PIPELINE)
            return built, listed(module)
    except tvm.error.InternalError as error:  # how TVM says that it cannot
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"no code for {context.target.name} can be generated from this model: "
            f"{lines[0] if lines else type(error).__name__}"
        ) from error


def compile_kernel(prim_func: Any, hardware: HardwareSpec) -> CarriedKernel:
    """One kernel alone, named ``kernel``, for this machine's device or for one elsewhere."""
    executable = compile_alone(prim_func, hardware)
    return CarriedKernel(executable, cuda_source(executable), hardware)


def compile_alone(prim_func: Any, hardware: HardwareSpec) -> Any:
    """A tvm.runtime.Executable of one kernel, named ``kernel``, as it would be inside a model."""
    import tvm

    from bscompile.targets.cuda.pipeline import PASS_CONFIG, TIR_PIPELINE, cuda_target

    target = cuda_target(hardware)
    module = tvm.IRModule({"kernel": prim_func.with_attr("global_symbol", "kernel")})
    with (
        _compiled_by_us(hardware),
        target,
        tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG),
    ):
        return tvm.compile(module, target=target, tir_pipeline=TIR_PIPELINE)


def cuda_source(executable: Any) -> str:
    """The generated CUDA source of a compiled module; empty where nothing runs on the device."""
    return "".join(
        str(module.inspect_source()) for module in _imports(executable.mod) if module.kind == "cuda"
    )


def _imports(module: Any) -> Iterator[Any]:
    for imported in module.imports:
        yield imported
        yield from _imports(imported)


@contextmanager
def _compiled_by_us(hardware: HardwareSpec) -> Iterator[None]:
    """Where TVM compiles at once, because a driver is loaded, it asks our compiler too."""
    import tvm_ffi

    def compile_cuda(source: str, *_target: Any) -> bytes:
        return compile_source(str(source), architectures(hardware))

    before = tvm_ffi.get_global_func(_CALLBACK, allow_missing=True)
    tvm_ffi.register_global_func(_CALLBACK, compile_cuda, override=True)
    try:
        yield
    finally:
        if before is not None:
            tvm_ffi.register_global_func(_CALLBACK, before, override=True)

"""The whole pass order of the CUDA target, as data."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import tvm
from tvm import tirx
from tvm.tirx import compilation_pipeline

from bscompile.targets.cpu.fuse_attention import FuseAttention
from bscompile.targets.cuda.compile import number
from bscompile.targets.cuda.either_way import EitherWay
from bscompile.targets.cuda.hardware import architectures
from bscompile.targets.cuda.kernels.code import attention
from bscompile.targets.gpu.legalize import LEGALIZE
from bscompile.targets.gpu.schedules import schedule
from bscompile.targets.relax_passes import to_virtual_machine

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

#: cp.async for copies that the kernels' schedules mark as asynchronous.
PASS_CONFIG = {"tirx.use_async_copy": True}
#: Name of the passes from scheduled functions to host and device code.
TIR_PIPELINE = "bscompile.cuda"


def cuda_target(hardware: HardwareSpec) -> Any:
    """The tvm.target.Target for an architecture, with this machine's kind as the host."""
    return tvm.target.Target(
        {
            "kind": "cuda",
            "arch": min(architectures(hardware), key=number),
            "max_threads_per_block": hardware.group_threads,
            "max_shared_memory_per_block": hardware.group_bytes,
            "thread_warp_size": 32,
        },
        host={"kind": "llvm"},
    )


def passes(target: Any) -> list[Any]:
    """Every pass from the lowered module to what the virtual machine runs, in order."""
    scheduling = tvm.transform.Sequential([_scheduling(target), EitherWay()])
    return to_virtual_machine(scheduling, LEGALIZE, [_attention(target)])


def _attention(target: Any) -> Any:
    """Attention in one launch, in the dtype that the layers around it multiply in."""
    shared = int(target.attrs["max_shared_memory_per_block"])

    def run(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        generate = partial(attention.generate, multiplied=_multiplied(module), shared_bytes=shared)
        return FuseAttention(generate)(module)

    return tvm.transform.module_pass(run, opt_level=0, name="bscompile.Attention")


def _multiplied(module: tvm.IRModule) -> str:
    """The 16-bit dtype of the model's kernels; float32 where there is none."""
    for _, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc):
            for parameter in func.params:
                if str(parameter.dtype) in ("float16", "bfloat16"):
                    return str(parameter.dtype)
    return "float32"


def _scheduling(target: Any) -> Any:
    """Threads for what no template made: TVM's rules for GPUs."""

    def run(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        for name, func in list(module.functions_items()):
            if isinstance(func, tirx.PrimFunc) and not func.attrs.get("tirx.is_scheduled"):
                module[name] = schedule(func, target).with_attr("tirx.is_scheduled", True)
        return module

    return tvm.transform.module_pass(run, opt_level=0, name="bscompile.Schedule")


def _by_dialect() -> tuple[Any, Any, Any]:
    """TVM's passes for each of its two dialects of TIR, on the functions that are in it.

    One is of loops bound to threads, with barriers put in where they are needed. In the other,
    for kernels whose warps part, every barrier is written out. They are the same language from
    the host's call on.
    """
    scheduled, finish_host, finish_device = compilation_pipeline.get_tir_pipeline("s_tir")
    written_out, _, _ = compilation_pipeline.get_tir_pipeline("tirx")

    def run(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        of_loops = tirx.transform.Filter(lambda func: "s_tir" in func.attrs)(module)
        others = tirx.transform.Filter(lambda func: "s_tir" not in func.attrs)(module)
        lowered = scheduled(of_loops)
        lowered.update(written_out(others))
        return lowered

    whole = tvm.transform.module_pass(run, opt_level=0, name="bscompile.ByDialect")
    return whole, finish_host, finish_device


compilation_pipeline.register_tir_pipeline(TIR_PIPELINE, _by_dialect)

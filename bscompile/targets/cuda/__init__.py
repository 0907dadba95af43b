"""NVIDIA GPUs: tensor-core and CUDA-core kernels from own templates, TVM's rules for the rest."""

from __future__ import annotations

from bscompile.errors import TargetError
from bscompile.targets.base import Availability, Target
from bscompile.targets.cpu.build import find_linker
from bscompile.targets.cuda.build import build, compile_kernel
from bscompile.targets.cuda.compile import compiler
from bscompile.targets.cuda.hardware import NEWEST_KNOWN, VARIANTS, device, hardware
from bscompile.targets.cuda.templates import TEMPLATES

__all__ = ["TARGET"]


def detect() -> Availability:
    """What this machine has: a GPU to run on, a compiler to build with."""
    found, install = device(), []
    detail = f"{found[0]}, {found[1]}" if found else f"no GPU; builds are for {NEWEST_KNOWN}"
    nvcc = compiler()
    if nvcc is None:
        install.append("the CUDA 13 toolkit (nvcc), or the extra bscompile[cuda] (NVRTC)")
    else:
        detail += f"; compiles by {nvcc}"
    try:
        find_linker()
    except TargetError:
        install.append("g++ or clang++")
    if found is None:
        install.append("an NVIDIA GPU and its driver, to run")
    compiles = nvcc is not None and "g++ or clang++" not in install
    return Availability(compiles, found is not None, detail, ", ".join(install))


TARGET = Target(
    name="cuda",
    description="NVIDIA GPUs from sm_80 on, 16-bit weights on their tensor cores",
    variants=VARIANTS,
    detect=detect,
    hardware=hardware,
    templates=TEMPLATES,
    build=build,
    loader="cuda",
    compile_kernel=compile_kernel,
    device="cuda",
    joins_variants=True,
)

"""The CPU: kernels from the shared templates, own schedules for the rest, one shared library."""

from __future__ import annotations

from bscompile.devices.cpu import available_threads
from bscompile.errors import TargetError
from bscompile.targets.base import Availability, Target
from bscompile.targets.cpu.build import build, compile_kernel, find_linker
from bscompile.targets.cpu.hardware import (
    VARIANTS,
    hardware,
    host_instruction_set,
    host_name,
)
from bscompile.targets.cpu.static import VARIANTS as STATIC
from bscompile.targets.cpu.templates import TEMPLATES

__all__ = ["TARGET"]


def detect() -> Availability:
    """What this machine has."""
    try:
        isa = host_instruction_set().name
    except TargetError as error:
        return Availability(compiles=False, runs=False, detail=error.message)
    detail = f"{host_name()}, {isa}, {available_threads()} processors"
    try:
        find_linker()
    except TargetError:
        return Availability(compiles=False, runs=True, detail=detail, install="g++ or clang++")
    return Availability(compiles=True, runs=True, detail=detail)


TARGET = Target(
    name="cpu",
    description="x86-64 and AArch64 processors, multi-threaded and vectorised",
    variants=(*VARIANTS, *STATIC),
    detect=detect,
    hardware=hardware,
    templates=TEMPLATES,
    build=build,
    compile_kernel=compile_kernel,
    branches=True,
    elsewhere=STATIC,
)

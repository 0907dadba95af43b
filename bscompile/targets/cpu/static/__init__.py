"""Variants of the cpu target that become static executables: other processors, and this one.

They share kernels, schedules and cost models with the cpu target; what differs is that the whole
model becomes one program with fixed shapes, linked by a (cross) compiler, that runs without TVM
and without Python.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from bscompile.devices.emulator import asked_for
from bscompile.errors import TargetError
from bscompile.targets.base import Availability, HardwareSpec, KernelTemplate, Target
from bscompile.targets.cpu.build import compile_kernel
from bscompile.targets.cpu.hardware import hardware as host_hardware
from bscompile.targets.cpu.hardware import llvm_target as host_code
from bscompile.targets.cpu.static.build import build, prepare
from bscompile.targets.cpu.static.processors import PROCESSORS, Processor
from bscompile.targets.cpu.templates import TEMPLATES
from bscompile.targets.native import MACHINES, kernel

__all__ = ["VARIANTS"]


def _target(
    about: str,
    machine: str,
    hardware: Callable[[str, int | None], HardwareSpec],
    code: Callable[[HardwareSpec], Any],
    templates: tuple[KernelTemplate, ...] = TEMPLATES,
) -> Target:
    elsewhere = machine != platform.machine()
    return Target(
        name="cpu",
        description=f"{about}: a static executable with fixed shapes",
        variants=(),
        detect=partial(_detect, machine),
        hardware=hardware,
        templates=templates,
        prepare=prepare,
        build=partial(build, code=code),
        loader="native",
        compile_kernel=kernel.compiler(code) if elsewhere else compile_kernel,
        measured_on=asked_for if elsewhere else None,
        check_kernel=kernel.check if elsewhere else None,
        device="" if elsewhere else "cpu",
        counts=kernel.COUNTS if elsewhere else "",
    )


def _elsewhere(processor: Processor) -> Target:
    def hardware(_variant: str, threads: int | None) -> HardwareSpec:
        return processor.spec if threads is None else replace(processor.spec, cores=threads)

    def code(_hardware: HardwareSpec) -> Any:
        import tvm

        return tvm.target.Target(dict(processor.target))

    machine, templates = processor.spec.machine, processor.templates
    return _target(processor.about, machine, hardware, code, templates)


def _here() -> Target:
    def hardware(_variant: str, threads: int | None) -> HardwareSpec:
        return host_hardware("", threads)

    return _target("this machine's processor", platform.machine(), hardware, host_code)


def _detect(machine: str) -> Availability:
    """What is here to compile for a processor family and to run its programs."""
    if machine not in MACHINES:
        return Availability(False, False, f"no static executables are made for {machine}")
    wanted, found = [], []
    try:
        compiler = MACHINES[machine].compiler()
        compiles = True
        found.append(f"compiled by {'ziglang' if len(compiler) > 1 else compiler[0]}")
    except TargetError:
        compiles = False
        wanted.append(MACHINES[machine].install)
    runs = machine == platform.machine()
    if not runs:
        emulator = f"qemu-{machine}"
        runs = shutil.which(emulator) is not None
        found += [f"run by {emulator}"] if runs else []
        wanted += [] if runs else ["apt-get install qemu-user to run it here"]
    return Availability(compiles, runs, ", ".join(found) or "no tools", "; ".join(wanted))


#: What follows ``cpu:`` -> the manifest that serves it.
VARIANTS: Mapping[str, Target] = MappingProxyType(
    {"static": _here(), **{name: _elsewhere(p) for name, p in PROCESSORS.items()}}
)

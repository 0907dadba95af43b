"""Hexagon DSPs: int8 layers on HVX vectors of 128 bytes, whole models as static programs.

Code is made by LLVM and linked by ziglang, without Qualcomm's tools; qemu-hexagon runs it here.
On a device the object is linked with the Hexagon SDK: docs/hexagon.md.
"""

from __future__ import annotations

import shutil
from functools import partial

from bscompile.devices.emulator import asked_for
from bscompile.errors import TargetError
from bscompile.targets.base import Availability, Target
from bscompile.targets.cpu.static.build import build, prepare
from bscompile.targets.hexagon.hardware import hardware, llvm_target
from bscompile.targets.hexagon.templates import TEMPLATES
from bscompile.targets.native import MACHINES, kernel

__all__ = ["TARGET"]


def detect() -> Availability:
    """What is here to compile for it, and to run its programs."""
    missing = []
    try:
        MACHINES["hexagon"].compiler()
    except TargetError:
        missing.append("pip install ziglang")
    compiles = not missing
    runs = shutil.which("qemu-hexagon") is not None
    if not runs:
        missing.append("apt-get install qemu-user")
    detail = "run by qemu-hexagon" if runs else "no emulator"
    return Availability(compiles, runs, detail, ", ".join(missing))


TARGET = Target(
    name="hexagon",
    description="Qualcomm Hexagon v66 and newer: int8 on HVX, a static program with fixed shapes",
    variants=("",),
    detect=detect,
    hardware=hardware,
    templates=TEMPLATES,
    prepare=prepare,
    build=partial(build, code=llvm_target),
    loader="native",
    compile_kernel=kernel.compiler(llvm_target),
    measured_on=asked_for,
    check_kernel=kernel.check,
    device="",
    counts=kernel.COUNTS.replace("instructions", "packets of instructions"),
)

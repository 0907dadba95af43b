"""The reference accelerator: an int8 systolic array in simulation, beside this host.

int8 layers run on the array, everything else is compiled for the host as target cpu does it. The
device is a reference design: its RTL (rtl) is simulated by Verilator behind a driver of four
functions (driver), which is all that a vendor with a real array replaces.
docs/writing_a_target.md walks through this folder file by file.
"""

from __future__ import annotations

from bscompile.devices.systolic import SIZES, missing_packages
from bscompile.targets.base import Availability, Target
from bscompile.targets.cpu import TARGET as HOST
from bscompile.targets.systolic.build import build
from bscompile.targets.systolic.hardware import VARIANTS, hardware
from bscompile.targets.systolic.lone_kernel import check_kernel, compile_kernel
from bscompile.targets.systolic.templates import TEMPLATES

__all__ = ["TARGET"]


def detect() -> Availability:
    """What this machine has: a host to compile for, and the tools that simulate the array."""
    host, missing = HOST.detect(), missing_packages()
    return Availability(
        compiles=host.compiles,
        runs=host.runs and not missing,
        detail=f"arrays of {', '.join(map(str, sorted(SIZES)))} in RTL simulation, {host.detail}",
        install=", ".join(filter(None, [host.install, *missing])),
    )


TARGET = Target(
    name="systolic",
    description="a weight-stationary int8 array in RTL simulation: the reference accelerator",
    variants=VARIANTS,
    detect=detect,
    hardware=hardware,
    templates=TEMPLATES,
    build=build,
    loader="systolic",
    compile_kernel=compile_kernel,
    check_kernel=check_kernel,
    device="",
    counts="cycles of the array at a nominal 1 GHz",
    places={"array_dense": "array", "array_block_sparse": "array", "": "host"},
)

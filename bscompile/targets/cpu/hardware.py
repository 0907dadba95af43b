"""What a CPU is to the compiler: instruction set, caches, rates; measured here, or derived.

A variant names the instruction set that code is made for. The numbers come from this machine in
either case: for an instruction set that it lacks they are scaled from what it has.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bscompile.errors import TargetError, did_you_mean
from bscompile.targets.base import HardwareSpec
from bscompile.targets.cpu.measure import Rates, measured_rates


@dataclass(frozen=True)
class InstructionSet:
    """One variant of the CPU target.

    Attributes:
        name: What users type after ``cpu:``.
        mcpu: LLVM's name of the baseline, which decides the instructions that may be used.
        mtriple: LLVM's target triple, empty for the host's.
        vector_bytes: Width of one register.
        features: What the baseline needs, as /proc/cpuinfo spells it.
    """

    name: str
    mcpu: str
    mtriple: str
    vector_bytes: int
    features: tuple[str, ...]


_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
INSTRUCTION_SETS = {
    isa.name: isa
    for isa in (
        InstructionSet(
            "avx512",
            "x86-64-v4",
            "x86_64-linux-gnu",
            64,
            (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
        ),
        InstructionSet("avx2", "x86-64-v3", "x86_64-linux-gnu", 32, _V3),
        InstructionSet("sse2", "x86-64", "x86_64-linux-gnu", 16, ("sse2",)),
        InstructionSet("neon", "generic", "aarch64-linux-gnu", 16, ("asimd",)),
    )
}
VARIANTS = ("", *INSTRUCTION_SETS)


def host_instruction_set() -> InstructionSet:
    """The widest instruction set of this machine.

    Raises:
        TargetError: the machine has none that code can be made for.
    """
    features = host_features()
    for isa in INSTRUCTION_SETS.values():
        if set(isa.features) <= features:
            return isa
    known = ", ".join(INSTRUCTION_SETS)
    raise TargetError(f"this CPU ({platform.machine()}) has none of {known}")


def host_features() -> frozenset[str]:
    """The CPU's features as /proc/cpuinfo spells them."""
    for key in ("flags", "Features"):
        if line := _cpuinfo(key):
            return frozenset(line.split())
    return frozenset()


def host_name() -> str:
    """The CPU's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def host_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(variant: str = "", threads: int | None = None) -> HardwareSpec:
    """The machine to compile for.

    Args:
        variant: An instruction set; empty takes this machine's widest.
        threads: Worker threads to compile for; None takes the processors available.

    Raises:
        TargetError: unknown variant, or no usable instruction set on this machine.
    """
    if variant not in VARIANTS:
        raise TargetError(
            f"unknown variant {variant!r} of target cpu", did_you_mean(variant, VARIANTS)
        )
    host = host_instruction_set()
    isa = INSTRUCTION_SETS[variant] if variant else host
    runs = set(isa.features) <= host_features()
    timed = isa if runs else host
    caches = cache_sizes()
    rates = measured_rates(host_name(), llvm_options(timed), timed.vector_bytes, caches)
    if not runs:
        rates = _scaled(rates, isa.vector_bytes / host.vector_bytes)
    return HardwareSpec(
        name=host_name() if runs else f"any {isa.name} CPU",
        isa=isa.name,
        features=isa.features,
        cores=threads or host_cores(),
        peak_gflops={"float32": rates.gflops},
        memory_gbps=rates.memory_gbps,
        cache_bytes=caches,
        cache_gbps=rates.cache_gbps,
        vector_bytes=isa.vector_bytes,
        launch_seconds=rates.launch_seconds,
    )


def _scaled(rates: Rates, factor: float) -> Rates:
    """Rates of narrower or wider registers: arithmetic and the nearest cache follow them."""
    nearest, *rest = rates.cache_gbps
    return replace(rates, gflops=rates.gflops * factor, cache_gbps=(nearest * factor, *rest))


def llvm_options(isa: InstructionSet) -> dict[str, str]:
    """What TVM needs to be told to generate code for an instruction set."""
    options = {"kind": "llvm", "mcpu": isa.mcpu}
    native = "aarch64" if isa.name == "neon" else "x86_64"
    if native != platform.machine():
        options["mtriple"] = isa.mtriple
    return options


def llvm_target(hardware: HardwareSpec) -> Any:
    """The tvm.target.Target that code for ``hardware`` is generated with.

    No fast-math flags: they would undo the careful sums in kernels/code/vector_math.py.
    """
    import tvm

    options: dict[str, Any] = dict(llvm_options(INSTRUCTION_SETS[hardware.isa]))
    return tvm.target.Target({**options, "num-cores": hardware.cores})


def cache_sizes() -> tuple[int, ...]:
    """Bytes of the data caches, nearest first, as the kernel tells; typical sizes otherwise."""
    found: dict[int, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level, size = int((index / "level").read_text()), (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and size[-1:] == "K" and size[:-1].isdigit():
            found[level] = int(size[:-1]) * 1024
    return tuple(found[level] for level in sorted(found)) or (32 << 10, 1 << 20, 16 << 20)


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""

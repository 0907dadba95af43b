"""What a CPU is to the compiler: instruction set, caches, rates; measured here, or derived.

A variant names the instruction set that code is made for. The numbers come from this machine in
either case: for an instruction set that it lacks they are scaled from what it has.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bscompile.devices.cpu import (
    available_threads,
    cpu_features,
    cpu_name,
    processor_fields,
)
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
_BF16: dict[str, tuple[str, ...]] = {"bfloat16": ("avx512_bf16",)}
_VNNI: dict[str, tuple[str, ...]] = {"int8": ("avx512_vnni",)}
#: Machines with more than their instruction set's baseline, precision by precision. Code uses
#: what a build's precisions call for and no more, so that all else still runs on the baseline.
EXTENDED: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "avx512vnni": ("avx512", _VNNI),
    "avx512bf16": ("avx512", {**_BF16, **_VNNI}),
    "amx": (
        "avx512",
        {
            "bfloat16": ("avx512_bf16", "amx_tile", "amx_bf16"),
            "int8": ("avx512_vnni", "amx_tile", "amx_int8"),
        },
    ),
}
VARIANTS = ("", *INSTRUCTION_SETS, *EXTENDED)
#: How LLVM spells what /proc/cpuinfo calls a feature.
_ATTRIBUTES = {
    "avx512_bf16": "+avx512bf16",
    "avx512_vnni": "+avx512vnni",
    "amx_tile": "+amx-tile",
    "amx_bf16": "+amx-bf16",
    "amx_int8": "+amx-int8",
}
_LAUNCH_SECONDS = 4e-6  # of a parallel region, where the process that asks has one worker only
#: Multiply-adds relative to float32 of a machine that is not here to be measured.
_NOMINAL = {"avx512_bf16": 2.0, "avx512_vnni": 4.0, "amx_bf16": 14.0, "amx_int8": 28.0}


def host_instruction_set() -> InstructionSet:
    """The widest instruction set of this machine.

    Raises:
        TargetError: the machine has none that code can be made for.
    """
    features = cpu_features()
    for isa in INSTRUCTION_SETS.values():
        if set(isa.features) <= features:
            return isa
    known = ", ".join(INSTRUCTION_SETS)
    raise TargetError(f"this CPU ({platform.machine()}) has none of {known}")


def host_name() -> str:
    """The CPU's model name; where that is a whole family's, with what tells its members apart."""
    name, fields = cpu_name(), processor_fields()
    numbers = [fields.get(key, "") for key in ("cpu family", "model", "stepping")]
    # Virtual machines hide the number that processors are sold under.
    hidden = all(numbers) and not any(character.isdigit() for character in name)
    return f"{name} {'-'.join(numbers)}" if hidden else name


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
            f"unknown variant {variant!r} of target cpu",
            did_you_mean(variant, filter(None, VARIANTS)),
        )
    host = host_instruction_set()
    name, extensions = EXTENDED.get(variant, (variant, {}))
    isa = INSTRUCTION_SETS[name] if name else host
    if not variant:
        extensions = host_extensions(isa)
    runs = set(isa.features) <= cpu_features()
    timed = isa if runs else host
    caches = cache_sizes()
    rates = measured_rates(
        host_name(), llvm_options(timed), timed.vector_bytes, caches, host_extensions(timed)
    )
    if not runs:
        rates = _scaled(rates, isa.vector_bytes / host.vector_bytes)
    used = {feature for features in extensions.values() for feature in features}
    return HardwareSpec(
        name=host_name() if runs and used <= cpu_features() else f"any {variant} CPU",
        isa=isa.name,
        features=isa.features,
        cores=threads or available_threads(),
        peak_gflops=peaks(rates, extensions),
        memory_gbps=rates.memory_gbps,
        cache_bytes=caches,
        cache_gbps=rates.cache_gbps,
        vector_bytes=isa.vector_bytes,
        launch_seconds=(
            rates.launch_seconds if math.isfinite(rates.launch_seconds) else _LAUNCH_SECONDS
        ),
        extensions=extensions,
        core_memory_gbps=rates.core_memory_gbps,
    )


def host_extensions(isa: InstructionSet) -> dict[str, tuple[str, ...]]:
    """What this machine has beyond a baseline: the most of each precision that is whole here."""
    found: dict[str, tuple[str, ...]] = {}
    for base, extensions in EXTENDED.values():
        for precision, features in extensions.items():
            if base == isa.name and set(features) <= cpu_features():
                found[precision] = features
    return found


def peaks(rates: Rates, extensions: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """GFLOP/s by precision; what has no instructions of its own is computed in float32.

    int8 without them widens pairs of inputs to 16 bits: float32's rate again.
    """
    found = dict.fromkeys(("float32", "bfloat16", "float16", "int8"), rates.gflops)
    for precision, features in extensions.items():
        measured = rates.products.get(features[-1])
        found[precision] = measured or rates.gflops * _NOMINAL[features[-1]]
    return found


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

    isa = INSTRUCTION_SETS[hardware.isa]
    options: dict[str, Any] = dict(llvm_options(isa))
    if more := attributes(set(hardware.features) - set(isa.features)):
        options["mattr"] = more
    return tvm.target.Target({**options, "num-cores": hardware.cores})


def attributes(features: Iterable[str]) -> list[str]:
    """LLVM's names of features beyond a baseline."""
    return [_ATTRIBUTES[feature] for feature in sorted(features)]


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

"""What this machine offers to compiled code: CPU features and threads. Standard library only."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from bscompile.errors import ArtifactError


@cache
def processor_fields() -> dict[str, str]:
    """What the kernel says of the first processor, as it spells it; empty where it says nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    first, _, _ = text.partition("\n\n")
    lines = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def cpu_features() -> frozenset[str]:
    """The CPU's features as the kernel names them; empty where the kernel does not tell."""
    fields = processor_fields()
    if "isa" in fields:  # RISC-V: rv64imafdcv_zicsr, one letter each and then words
        letters, *words = fields["isa"].split("_")
        return frozenset((*letters.removeprefix("rv64"), *words))
    return frozenset((fields.get("flags") or fields.get("Features", "")).split())  # x86, Arm


def cpu_name() -> str:
    """The CPU's model name, for people."""
    return processor_fields().get("model name") or platform.processor() or platform.machine()


def available_threads() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has affinities
        return os.cpu_count() or 1


def check_machine(machine: str, features: tuple[str, ...]) -> None:
    """Refuse code that would stop here with an illegal instruction.

    Raises:
        ArtifactError: another processor family, or features that this CPU lacks.
    """
    if machine != platform.machine():
        raise ArtifactError(
            f"built for {machine} processors, this one is {platform.machine()}",
            hint="build the model on this machine",
        )
    missing = sorted(set(features) - cpu_features())
    if missing:
        raise ArtifactError(
            f"needs CPU features that {cpu_name()} lacks: {', '.join(missing)}",
            hint="build with --target cpu on this machine, or with a smaller variant",
        )

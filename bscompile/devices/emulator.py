"""The emulators that run programs for other processors here, and what they count."""

from __future__ import annotations

import os
import shutil

#: Processor family -> (its emulator, the processor to emulate). The user's QEMU_CPU goes first.
EMULATORS = {
    "aarch64": ("qemu-aarch64", "max"),
    "riscv64": ("qemu-riscv64", "rv64,v=true,vlen=256,vext_spec=v1.0"),
    "x86_64": ("qemu-x86_64", "max"),
    "hexagon": ("qemu-hexagon", ""),
}


def emulator(machine: str) -> str:
    """The emulator's name; empty where none is known."""
    return EMULATORS.get(machine, ("", ""))[0]


def installed(machine: str) -> bool:
    """Whether the emulator of a processor family is here."""
    return bool(emulator(machine) and shutil.which(emulator(machine)))


def asked_for() -> str:
    """The processor that the user wants emulated; empty where that is left to us."""
    return os.environ.get("QEMU_CPU", "")


def environment(machine: str) -> dict[str, str]:
    """What the emulator wants in its environment: which processor it is to be."""
    chosen = asked_for() or EMULATORS[machine][1]
    return {"QEMU_CPU": chosen} if chosen else {}

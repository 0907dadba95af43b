"""The processor families that static executables are made for, and what makes them."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bscompile.errors import TargetError


@dataclass(frozen=True)
class Machine:
    """A processor family with an operating system.

    Attributes:
        name: As ``uname -m`` says there.
        gcc: The distribution's cross compiler; also its name as a package.
        packages: What apt installs to compile for it.
        zig: Target of ``python -m ziglang cc``, which brings a C library of its own.
        host: The file of ``c`` that stands for its operating system.
        start: The file where its programs begin when there is no C library; empty with one.
        flags: Further options for the compiler.
    """

    name: str
    gcc: str
    packages: str
    zig: str
    host: str = "host_posix.c"
    start: str = ""
    flags: tuple[str, ...] = ()

    def compiler(self) -> list[str]:
        """The command that compiles and links for it.

        Raises:
            TargetError: there is none.
        """
        native = ("gcc", "cc", "clang") if self.name == platform.machine() else ()
        for name in (self.gcc, *native):
            if name and shutil.which(name):
                return [name]
        if zig := find_zig():
            return [*zig, "cc", "-target", self.zig]
        raise TargetError(
            f"no C compiler for {self.name} was found",
            f"{self.install}",
        )

    @property
    def install(self) -> str:
        """What to install when no compiler is there."""
        packaged = f"apt-get install {self.packages}, or " if self.packages else ""
        return f"{packaged}pip install ziglang"


def find_zig() -> list[str]:
    """The command ``python -m ziglang``; empty where the package is not installed."""
    import importlib.util
    import sys

    return [sys.executable, "-m", "ziglang"] if importlib.util.find_spec("ziglang") else []


MACHINES: Mapping[str, Machine] = MappingProxyType(
    {
        machine.name: machine
        for machine in (
            Machine(
                "aarch64",
                "aarch64-linux-gnu-gcc",
                "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
                "aarch64-linux-musl",
            ),
            Machine(
                "riscv64",
                "riscv64-linux-gnu-gcc",
                "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross",
                "riscv64-linux-musl",
            ),
            Machine("x86_64", "x86_64-linux-gnu-gcc", "gcc", "x86_64-linux-musl"),
            Machine(
                "hexagon",
                "",
                "",
                "hexagon-freestanding-none",
                host="host_hexagon.c",
                start="start_hexagon.c",
                flags=("-mcpu=hexagonv66", "-ffreestanding", "-fno-pic", "-G0"),
            ),
        )
    }
)

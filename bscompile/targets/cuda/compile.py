"""CUDA source -> machine code by nvcc, or by NVRTC where only that is installed.

Neither needs a GPU or a driver. Fast-math flags are left out: the epilogues are exact enough to
be checked against float64, and stay so.
"""

from __future__ import annotations

from functools import lru_cache

from bscompile.errors import TargetError
from bscompile.targets.cuda import nvcc, nvrtc

INSTALL = "install the CUDA 13 toolkit, or pip install 'bscompile[cuda]'"

#: What has instructions that no later one has; machine code for it runs there and nowhere else.
_OWN_FEATURES = {"sm_90": "sm_90a"}


def compiler() -> str | None:
    """What will compile: the path of nvcc, ``nvrtc``, or None where neither is installed."""
    return nvcc.find() or ("nvrtc" if nvrtc.installed() else None)


@lru_cache(maxsize=16)
def compile_source(source: str, architectures: tuple[str, ...]) -> bytes:
    """A fat binary of generated CUDA source.

    Args:
        source: As TVM generates it.
        architectures: Such as ``sm_80``: machine code for each, and PTX of the lowest, from
            which the driver makes code for every other GPU that is newer. Machine code for sm_90
            is that for sm_90a, with the instructions that only Hopper has; PTX is without.

    Raises:
        TargetError: no compiler, or it does not know an architecture or refuses the source.
    """
    ordered = tuple(sorted(architectures, key=number))
    machines = tuple(_OWN_FEATURES.get(name, name) for name in ordered)
    if path := nvcc.find():
        return nvcc.fatbin(path, source, machines, ordered[0])
    if nvrtc.installed():
        return nvrtc.fatbin(source, machines, ordered[0])
    raise TargetError("building for cuda needs nvcc or NVRTC, and neither was found", INSTALL)


def to_ptx(source: str, architecture: str) -> str:
    """The PTX text of generated source, for tests and for readers.

    Raises:
        TargetError: as compile_source.
    """
    if path := nvcc.find():
        return nvcc.ptx(path, source, architecture)
    if nvrtc.installed():
        return nvrtc.ptx(source, architecture).decode()
    raise TargetError("PTX text needs nvcc or NVRTC, and neither was found", INSTALL)


def number(architecture: str) -> int:
    """The number of an architecture, such as 90 of ``sm_90a``: newer ones have greater ones."""
    return int(architecture.removeprefix("sm_").rstrip("abcdefgh"))

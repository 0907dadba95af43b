"""NVIDIA's libraries: those on the loader's path, and those that wheels bring along."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def load_library(*names: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL | None:
    """The first of these libraries that is here; None where none is.

    Args:
        names: Such as ``libcublas.so.13``; on the loader's path all of them are looked for first.
        mode: As ctypes has it.
    """
    wheels = (
        str(path)
        for name in names
        for folder in sys.path
        for path in sorted(Path(folder).glob(f"nvidia/*/lib/{name}"))
    )
    for name in (*names, *wheels):
        try:
            return ctypes.CDLL(name, mode)
        except OSError:
            continue
    return None

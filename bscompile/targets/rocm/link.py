"""Linking AMD code objects without ROCm: LLVM's linker is all it takes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bscompile.errors import TargetError

# Older ones do not know the version of TVM's code objects.
_NAMES = ("ld.lld-22", "ld.lld-21", "ld.lld-20", "ld.lld-19", "ld.lld-18")


def find_linker() -> list[str]:
    """The command that links ELF files for AMD GPUs.

    Raises:
        TargetError: there is none.
    """
    for name in _NAMES:
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "ld.lld"]
    raise TargetError(
        "building for rocm needs LLVM's linker, and none was found",
        "pip install ziglang, or install lld of version 18 or later",
    )


@contextmanager
def linked_objects() -> Iterator[list[bytes]]:
    """While it lasts, TVM links by ``find_linker``; yields what it linked, in order.

    ROCm's library of device functions is left out: the kernels need none of it.
    """
    import tvm.support.rocm  # noqa: F401  # registers what is replaced here
    import tvm_ffi

    linker = find_linker()
    linked: list[bytes] = []

    def link(code: bytes) -> bytearray:
        linked.append(_linked(linker, bytes(code)))
        return bytearray(linked[-1])

    for name, function in (
        ("tvm_callback_rocm_bitcode_path", _no_bitcode),
        ("tvm_callback_rocm_link", link),
    ):
        tvm_ffi.register_global_func(name, function, override=True)
    yield linked


def _no_bitcode() -> list[str]:
    return []


def _linked(linker: list[str], code: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
        source, result = Path(folder) / "kernel.o", Path(folder) / "kernel.hsaco"
        source.write_bytes(code)
        command = [*linker, "--no-undefined", "-shared", str(source), "-o", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise TargetError(f"{linker[-1]} could not link a kernel: {''.join(last)}")
        return result.read_bytes()

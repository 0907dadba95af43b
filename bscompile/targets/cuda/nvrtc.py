"""The CUDA compiler as a library, from the toolkit or from pip; and what joins its results."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from bscompile.errors import TargetError


def installed() -> bool:
    """Whether the library and the headers that generated source includes are here."""
    return _library("nvrtc") is not None and bool(_headers())


def fatbin(source: str, architectures: tuple[str, ...], portable: str) -> bytes:
    """Machine code for each architecture, and PTX of the ``portable`` one.

    Raises:
        TargetError: NVRTC refuses the source or an architecture, or nvFatbin is missing.
    """
    joiner = _library("nvfatbin")
    if joiner is None:
        raise TargetError(
            "NVRTC alone makes no fat binary: nvFatbin was not found", "pip install nvidia-nvfatbin"
        )
    handle = ctypes.c_void_p()
    joiner.nvFatbinCreate(ctypes.byref(handle), None, ctypes.c_size_t(0))
    try:
        text = ptx(source, portable)
        first = portable.removeprefix("sm_").encode()
        _check(joiner.nvFatbinAddPTX(handle, text, _size(text), first, b"kernels", b""), "nvFatbin")
        for name in architectures:
            code = _compile(source, name, "CUBIN")
            number = name.removeprefix("sm_").encode()
            _check(
                joiner.nvFatbinAddCubin(handle, code, _size(code), number, b"kernels"), "nvFatbin"
            )
        size = ctypes.c_size_t()
        _check(joiner.nvFatbinSize(handle, ctypes.byref(size)), "nvFatbin")
        joined = ctypes.create_string_buffer(size.value)
        _check(joiner.nvFatbinGet(handle, joined), "nvFatbin")
        return joined.raw
    finally:
        joiner.nvFatbinDestroy(ctypes.byref(handle))


def ptx(source: str, architecture: str) -> bytes:
    """The PTX text, ending in a zero byte.

    Raises:
        TargetError: NVRTC refuses the source or the architecture.
    """
    return _compile(source, architecture.replace("sm_", "compute_"), "PTX").rstrip(b"\0") + b"\0"


def _compile(source: str, architecture: str, result: str) -> bytes:
    library = _library("nvrtc")
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    options = [f"--gpu-architecture={architecture}", "-std=c++17", "-default-device"]
    options += [f"-I{folder}" for folder in _headers()]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    try:
        if library.nvrtcCompileProgram(program, len(options), given):
            log = _text(program, "ProgramLog").decode(errors="replace").splitlines()
            wrong = next((line for line in log if "error" in line), "no reason given")
            if "gpu-architecture" in wrong:
                wrong = f"it does not know {architecture.replace('compute_', 'sm_')}"
            raise TargetError(f"NVRTC failed: {wrong}")
        return _text(program, result)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    library, size = _library("nvrtc"), ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    held = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, held)
    return held.raw


def _size(code: bytes) -> ctypes.c_size_t:
    return ctypes.c_size_t(len(code))


def _check(code: int, name: str) -> None:
    if code:
        raise TargetError(f"{name} failed with {code}")


def _wheel_folders() -> list[Path]:
    return [p for d in sys.path for p in Path(d).glob("nvidia/*") if p.is_dir()]


@lru_cache(maxsize=4)
def _library(name: str) -> Any:
    """A library of the toolkit or of a wheel; None where there is none."""
    wheels = [str(p) for d in _wheel_folders() for p in d.glob(f"lib/lib{name}.so.*")]
    for path in (f"lib{name}.so.13", *sorted(wheels)):
        try:
            if path in wheels:  # its other half is on no search path
                for part in Path(path).parent.glob(f"lib{name}-builtins.so.*"):
                    ctypes.CDLL(str(part), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


@lru_cache(maxsize=1)
def _headers() -> tuple[str, ...]:
    """Folders with cuda_fp16.h and what it includes."""
    roots = [Path(p) for p in (os.environ.get("CUDA_PATH"), "/usr/local/cuda") if p]
    folders = [d / "include" for d in (*roots, *_wheel_folders())]
    found = [d for d in folders if (d / "cuda_fp16.h").is_file()]
    standard = [d / "cccl" for d in folders if (d / "cccl" / "cuda" / "std").is_dir()]
    return tuple(str(d) for d in (*found, *standard))

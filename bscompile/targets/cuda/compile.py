"""CUDA source -> machine code by nvcc, or by NVRTC where only that is installed.

Neither needs a GPU or a driver. Fast-math flags are left out: the epilogues are exact enough to
be checked against float64, and stay so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from bscompile.errors import TargetError

_INSTALL = (
    "install the CUDA 13 toolkit, "
    "or pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
)


def compiler() -> str | None:
    """What will compile: the path of nvcc, ``nvrtc``, or None where neither is installed."""
    return find_nvcc() or ("nvrtc" if _nvrtc_library() and _headers() else None)


def find_nvcc() -> str | None:
    """The path of nvcc: on PATH, in $CUDA_PATH or where its installer puts it."""
    for folder in (os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if folder and (found := shutil.which("nvcc", path=str(Path(folder) / "bin"))):
            return found
    return shutil.which("nvcc")


@lru_cache(maxsize=16)
def compile_source(source: str, architectures: tuple[str, ...]) -> bytes:
    """A fat binary, or a cubin where NVRTC makes it, of generated CUDA source.

    Args:
        source: As TVM generates it.
        architectures: Such as ``sm_90``: machine code for each, and PTX of the first, from
            which the driver makes code for GPUs that are newer than all of them.

    Raises:
        TargetError: no compiler, or it does not know an architecture or refuses the source.
    """
    nvcc = find_nvcc()
    if nvcc:
        return _run_nvcc(nvcc, source, ("--fatbin", *_generate(architectures)))
    if _nvrtc_library() and _headers():
        if len(architectures) != 1:
            raise TargetError("NVRTC compiles for one architecture at a time", "install nvcc")
        return _run_nvrtc(source, architectures[0])
    raise TargetError("building for cuda needs nvcc or NVRTC, and neither was found", _INSTALL)


def to_ptx(source: str, architecture: str) -> str:
    """The PTX text of generated source, for tests and for readers.

    Raises:
        TargetError: as compile_source; nvcc is needed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise TargetError("PTX text needs nvcc, and it was not found", _INSTALL)
    return _run_nvcc(nvcc, source, ("--ptx", f"-arch={architecture}")).decode()


def _generate(architectures: tuple[str, ...]) -> tuple[str, ...]:
    numbers = [name.removeprefix("sm_") for name in architectures]
    code = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    return (*code, f"-gencode=arch=compute_{numbers[0]},code=compute_{numbers[0]}")


def _run_nvcc(nvcc: str, source: str, flags: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
        text, output = Path(folder) / "kernels.cu", Path(folder) / "kernels.out"
        text.write_text(source)
        command = [nvcc, *flags, "-O3", "-std=c++17", "-w", "-o", str(output), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            wrong = next((line for line in lines if "error" in line or "fatal" in line), "")
            raise TargetError(f"nvcc failed: {wrong or ''.join(lines[:1]) or done.returncode}")
        return output.read_bytes()


# ---------------------------------------------------------------- NVRTC, from pip or the toolkit


def _wheel_folders() -> list[Path]:
    return [p for d in sys.path for p in Path(d).glob("nvidia/*") if p.is_dir()]


@lru_cache(maxsize=1)
def _nvrtc_library() -> Any:
    wheels = [str(p) for d in _wheel_folders() for p in d.glob("lib/libnvrtc.so.*")]
    for name in ("libnvrtc.so.13", "libnvrtc.so.12", *sorted(wheels)):
        try:
            if name in wheels:  # its other half is on no search path
                for part in Path(name).parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(part), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(name)
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


def _run_nvrtc(source: str, architecture: str) -> bytes:
    library = _nvrtc_library()
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    options = [f"--gpu-architecture={architecture}", "-std=c++17", "-default-device"]
    options += [f"-I{folder}" for folder in _headers()]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    try:
        if library.nvrtcCompileProgram(program, len(options), given):
            log = _nvrtc_text(program, "ProgramLog").decode(errors="replace").splitlines()
            wrong = next((line for line in log if "error" in line), "no reason given")
            raise TargetError(f"NVRTC failed: {wrong}")
        return _nvrtc_text(program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _nvrtc_text(program: ctypes.c_void_p, what: str) -> bytes:
    library, size = _nvrtc_library(), ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    held = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, held)
    return held.raw

"""The CUDA toolkit's compiler, as a command."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from bscompile.errors import TargetError


def find() -> str | None:
    """The path of nvcc: on PATH, in $CUDA_PATH or where its installer puts it."""
    for folder in (os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if folder and (found := shutil.which("nvcc", path=str(Path(folder) / "bin"))):
            return found
    return shutil.which("nvcc")


@lru_cache(maxsize=4)
def architectures(path: str) -> tuple[str, ...]:
    """Every architecture that it makes machine code for, such as ``sm_90``, ascending.

    Those of one card's own features, such as ``sm_90a``, it does not list.
    """
    done = subprocess.run([path, "--list-gpu-code"], capture_output=True, text=True, check=False)
    return tuple(sorted(done.stdout.split(), key=lambda name: int(name.removeprefix("sm_"))))


def fatbin(path: str, source: str, wanted: tuple[str, ...], portable: str) -> bytes:
    """Machine code for each architecture, and PTX of the ``portable`` one.

    Raises:
        TargetError: nvcc does not know an architecture, or refuses the source.
    """
    names = [name.removeprefix("sm_") for name in wanted]
    flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in names]
    lowest = portable.removeprefix("sm_")
    flags.append(f"-gencode=arch=compute_{lowest},code=compute_{lowest}")
    return _run(path, source, ("--fatbin", *flags), wanted)


def ptx(path: str, source: str, architecture: str) -> str:
    """The PTX text.

    Raises:
        TargetError: as ``fatbin``.
    """
    return _run(path, source, ("--ptx", f"-arch={architecture}"), (architecture,)).decode()


def _run(path: str, source: str, flags: tuple[str, ...], wanted: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
        text, output = Path(folder) / "kernels.cu", Path(folder) / "kernels.out"
        text.write_text(source)
        command = [path, *flags, "-O3", "-std=c++17", "-w", "-o", str(output), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode:
            return output.read_bytes()
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        if any("Unsupported gpu architecture" in line for line in lines):
            known = architectures(path)
            missing = [name for name in wanted if name.rstrip("af") not in known]
            raise TargetError(
                f"{path} does not know {' and '.join(missing) or ' or '.join(wanted)}; "
                f"it knows {', '.join(known) or 'none'}",
                "install a newer CUDA toolkit, or build for an architecture that it knows",
            )
        wrong = next((line for line in lines if "error" in line or "fatal" in line), "")
        raise TargetError(f"nvcc failed: {wrong or ''.join(lines[:1]) or done.returncode}")

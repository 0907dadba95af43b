"""A kernel alone, for a device that may be elsewhere: its library brings its machine code along.

Without a driver TVM writes the CUDA source into a library, and whoever loads it compiles: with
TVM's own flags and for another architecture (sm_90, which has no wgmma). So the code that is made
here is linked in, with a function that hands it out; see carried_code.c.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bscompile.errors import TargetError
from bscompile.targets.base import HardwareSpec
from bscompile.targets.cpu.build import find_linker
from bscompile.targets.cuda import compile as compiling
from bscompile.targets.cuda.hardware import architectures

_C = Path(__file__).with_name("carried_code.c")
# The function stays registered when the library is closed, so the library must stay mapped.
_KEPT = "-Wl,-z,nodelete"


class CarriedKernel:
    """What the tuner takes for a tvm.runtime.Executable.

    Args:
        executable: One, of a CUDA kernel.
        source: Its CUDA source.
        hardware: What it is for.
    """

    def __init__(self, executable: Any, source: str, hardware: HardwareSpec) -> None:
        self._executable, self._source, self._hardware = executable, source, hardware

    @property
    def mod(self) -> Any:
        """TVM's module."""
        return self._executable.mod

    def jit(self) -> Any:
        """Load it into this process."""
        return self._executable.jit()

    def export_library(self, path: str) -> None:
        """Write the shared library.

        Raises:
            TargetError: no compiler for CUDA, or it or the C compiler refuses.
        """
        code = compiling.compile_source(self._source, architectures(self._hardware))
        with tempfile.TemporaryDirectory(prefix="bscompile-") as name:
            folder = Path(name)
            (folder / "source").write_text(self._source)
            (folder / "code").write_bytes(code)
            linker = find_linker()
            part = _compiled(linker, folder)
            self._executable.export_library(path, addons=[str(part)], cc=linker, options=[_KEPT])


def _compiled(compiler: str, folder: Path) -> Path:
    from tvm_ffi import libinfo

    made = folder / "carried.o"
    command = [compiler, "-x", "c", "-c", "-O1", "-fPIC", str(_C), "-o", str(made)]
    command += [f"-I{libinfo.find_include_path()}", f"-I{libinfo.find_dlpack_include_path()}"]
    command += [f'-DCARRIED_{part.upper()}="{folder / part}"' for part in ("source", "code")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(f"{compiler} failed: {''.join(done.stderr.splitlines()[:1])}")
    return made

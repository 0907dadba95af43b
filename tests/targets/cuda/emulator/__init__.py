"""Runs generated CUDA source on the CPU: threads, shared memory, barriers and tensor cores.

``start()`` puts an emulated driver under TVM's CUDA runtime, so that modules, launches and whole
models take the road that they take on a GPU; ``compile_source`` stands where nvcc does. It is one
reading of the PTX manual: it finds wrong arithmetic, layouts, addresses, waits and barriers, not
races between memory proxies, and says nothing about speed.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.targets.cuda.emulator.translate import translate

HERE = Path(__file__).parent
_FLAGS = [
    "-std=c++17",
    "-w",
    "-fpermissive",
    "-fPIC",
    "-shared",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
]


def compile_source(source: str, *, hopper: bool = True) -> bytes:
    """A module image that the emulated driver loads, from generated CUDA source.

    Args:
        source: As TVM generates it.
        hopper: Whether as for sm_90a; else what is left for GPUs that run its portable PTX.
    """
    feature = ("-D__CUDA_ARCH_FEAT_SM90_ALL",) if hopper else ()
    library = _compile(translate(source), "-O1", f"-I{HERE}", *feature)
    return b"EMULATED" + len(library).to_bytes(8, "little") + library


def _compile(text: str, *flags: str) -> bytes:
    from bscompile.targets.cpu.build import find_linker

    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "a.cc", Path(folder) / "a.so"
        source.write_text(text)
        done = subprocess.run(
            [find_linker(), *_FLAGS, *flags, "-o", str(library), str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[:4000])
        return library.read_bytes()


@cache
def start() -> None:
    """Load the emulated driver and TVM's CUDA runtime over it; once in a process.

    A real cuBLAS would find a driver that it cannot work with, so none is looked for.
    """
    import tvm
    import tvm_ffi

    os.environ.setdefault("BSCOMPILE_CUBLAS", "off")
    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
        raise RuntimeError("a CUDA runtime is loaded already; the emulator must come first")
    with tempfile.TemporaryDirectory() as folder:
        for path in write_libraries(Path(folder))[:2]:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    from bscompile.runtime.tvm_library import load_ffi

    load_ffi()
    folder_of_tvm = Path(tvm.__file__).parent / "lib"
    ctypes.CDLL(str(folder_of_tvm / "libtvm_runtime_cuda.so"), ctypes.RTLD_GLOBAL)


@cache
def load_cublas() -> None:
    """Load the emulated libcublas: whoever asks the loader for NVIDIA's finds it."""
    with tempfile.TemporaryDirectory() as folder:
        ctypes.CDLL(str(write_libraries(Path(folder))[2]))


def write_libraries(folder: Path) -> list[Path]:
    """The emulated libcuda, libcudart and libcublas, under the names of NVIDIA's."""
    folder.mkdir(exist_ok=True)
    script = folder / "versions"
    script.write_text("libcudart.so.13 { global: cuda*; };\n")
    made = []
    for name, source, extra in (
        ("libcuda.so.1", "driver.cc", []),
        ("libcudart.so.13", "driver.cc", [f"-Wl,--version-script={script}"]),
        ("libcublas.so.13", "cublas.cc", []),
    ):
        flags = ["-O1", f"-I{HERE}", f"-Wl,-soname,{name}", *extra, "-ldl"]
        made.append(folder / name)
        made[-1].write_bytes(_compile((HERE / source).read_text(), *flags))
    return made

"""Both halves of the report without a GPU: small shapes, an emulated device, a bare Python.

``build`` runs here, with the emulator's compiler where nvcc stands. ``run`` is a process of its own
that can import numpy, tvm_ffi and this repository, and nothing else: no tvm, no torch, no onnx.
What it finds as libcuda, libcudart and libcublas is the emulator's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np

_BARE = ("numpy", "numpy.libs", "tvm_ffi", "typing_extensions.py")
_ABSENT = ("tvm", "torch", "onnx", "ml_dtypes", "onnxruntime")


def dry_run(parts: Sequence[str]) -> int:
    """Everything once; returns what ``run`` exits with."""
    from benchmarks.gpu.__main__ import build
    from tests.targets.cuda import emulator

    with tempfile.TemporaryDirectory() as name:
        place, began = Path(name), time.perf_counter()
        compile_code = "bscompile.targets.cuda.build.compile_source"
        with mock.patch(compile_code, lambda code, _: emulator.compile_source(code)):
            folder = place / "built" / "gpu"
            build(folder, "sm_90", lambda code, _: emulator.compile_source(code), parts, small=True)
        emulator.write_libraries(place / "driver")
        carried = place / "carried"
        carried.mkdir()
        (place / "built" / "gpu.tar.xz").rename(carried / "gpu.tar.xz")  # and nothing else
        built = time.perf_counter()
        command = [sys.executable, "-S", "-m", "benchmarks.gpu", "run", "--budget", "600"]
        command += ["--folder", str(carried / "gpu"), "--results", str(place), "--part", *parts]
        done = subprocess.run(
            command, env=bare_environment(place), cwd=carried, check=False
        ).returncode
        print(f"built in {built - began:.0f} s, ran in {time.perf_counter() - built:.0f} s")
        return done


def bare_environment(place: Path) -> dict[str, str]:
    """For a Python started with -S: only what a machine with a GPU is sure to have."""
    site, packages = place / "site", Path(np.__file__).parents[1]
    site.mkdir()
    for name in _BARE:
        if (packages / name).exists():
            (site / name).symlink_to(packages / name)
    root = Path(__file__).parents[2]
    (site / "bscompile").symlink_to(root / "bscompile")
    (site / "benchmarks").symlink_to(root / "benchmarks")
    environment = {"PYTHONPATH": str(site), "LD_LIBRARY_PATH": str(place / "driver")}
    check = "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, sys.argv[1:])))"
    command = [sys.executable, "-S", "-c", check, *_ABSENT]
    subprocess.run(command, env=os.environ | environment, cwd=site, check=True)
    return os.environ | environment

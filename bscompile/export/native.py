"""A folder for a device without Python: the program, its weights, and what C code links with.

model                  reads inputs from standard input, writes outputs to standard output
weights.bin            its weights
model.o                the same model without a function main, for other programs
bscompile_model.h      what those include
README.txt             how to call it, with the names, shapes and dtypes of this model
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from bscompile.artifact import read_artifact
from bscompile.artifact.manifest import Manifest, TensorSpec
from bscompile.errors import StorageError, TargetError
from bscompile.export import ExportOptions
from bscompile.files import atomic_folder
from bscompile.runtime.native import EXECUTABLE, write_weights

LOADER: Final = "native"
_CODE: Final = {"model": 0o755, "model.o": 0o644, "bscompile_model.h": 0o644}
_README: Final = "README.txt"


def export(
    artifact: Path, folder: Path, options: ExportOptions, progress: Callable[[str], None]
) -> Path:
    """Write the folder and return its program; see bscompile.export."""
    _check_free(folder)
    progress("reading the artifact")
    read = read_artifact(artifact)
    manifest = read.manifest
    if manifest.loader != LOADER or EXECUTABLE not in read.members:
        raise TargetError(
            f"{artifact}: built for {manifest.target}, this format needs a static executable",
            hint="build it with --target cpu:static, cpu:aarch64, cpu:riscv64 or hexagon",
        )
    progress("writing the folder")
    with atomic_folder(folder) as staged:
        for name, mode in _CODE.items():
            (staged / name).write_bytes(read.members[f"code/{name}"])
            (staged / name).chmod(mode)
        write_weights(read, staged / "weights.bin")
        (staged / _README).write_text(_readme(manifest), encoding="utf-8")
    return folder / "model"


def _readme(manifest: Manifest) -> str:
    lines = [
        f"{manifest.name}, compiled by bscompile for {manifest.machine} ({manifest.isa}).",
        "",
        "    ./model weights.bin < inputs > outputs",
        "",
        "inputs: the bytes of these tensors, one after the other, little endian, row by row",
        *map(_line, manifest.inputs),
        "outputs, likewise:",
        *map(_line, manifest.outputs),
        "",
        "--threads N uses N threads; --repeat N runs every call N times and tells the fastest.",
        "",
        "From C: include bscompile_model.h, link model.o, and where there is a C library -lm",
        "and -pthread.",
    ]
    if manifest.features:
        lines += ["", f"The processor needs: {', '.join(manifest.features)}."]
    return "\n".join(lines) + "\n"


def _line(spec: TensorSpec) -> str:
    size = math.prod(int(d) for d in spec.shape) * np.dtype(spec.dtype).itemsize
    return f"    {spec}, {size} bytes"


def _check_free(folder: Path) -> None:
    """Refuse to replace what is not ours, before anything is computed."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StorageError(f"{folder}: cannot be written, it is no folder", "name a new folder")
    known = (*_CODE, _README)
    if folder.is_dir() and any(folder.iterdir()) and not all((folder / n).is_file() for n in known):
        raise StorageError(
            f"{folder}: cannot be replaced, it holds files that are no export",
            hint="name a new or empty folder",
        )

"""Arrays from and to .npy and .npz files; nothing is ever unpickled."""

from __future__ import annotations

import io
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.errors import StorageError, UsageError, did_you_mean
from bscompile.files import write_atomically

Array = npt.NDArray[Any]

# What numpy raises on files that are not what they say, found by fuzzing.
_BROKEN = (
    ValueError,
    EOFError,
    MemoryError,  # a header that promises more than there is
    OverflowError,
    TypeError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    KeyError,
    IndexError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    RecursionError,
)


def read_inputs(arguments: Sequence[str], names: Sequence[str]) -> dict[str, Array]:
    """Read what --input names.

    Args:
        arguments: Each ``NAME=x.npy``, ``x.npy`` for a model of one input, or ``all.npz``.
        names: The model's inputs.

    Raises:
        UsageError: an unknown or repeated name, or no name where one is needed.
        StorageError: a file cannot be read, or is no array file.
    """
    arrays: dict[str, Array] = {}
    for argument in arguments:
        for name, array in _read_argument(argument, names).items():
            if name not in names:
                known = did_you_mean(name, names)
                raise UsageError(f"--input {argument}: no input is named {name!r}", known)
            if name in arrays:
                raise UsageError(f"--input {argument}: the input {name} was given already")
            arrays[name] = array
    return arrays


def read_arrays(path: str | Path) -> dict[str, Array]:
    """The arrays of a .npz file by name, or that of a .npy file under the empty name.

    Raises:
        StorageError: the file cannot be read, or is no array file.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: np.asarray(loaded[name]) for name in loaded.files}
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{path}: cannot be read, {reason}") from error
    except _BROKEN as error:
        raise StorageError(
            f"{path}: not a .npy or .npz file of plain arrays",
            hint="write it with numpy.save or numpy.savez",
        ) from error


def write_outputs(folder: Path, results: Mapping[str, Array]) -> dict[str, Path]:
    """Write each array to ``folder/<name>.npy``, atomically.

    Characters that do not belong in a file name become ``_``; names stay distinct.

    Returns:
        Name -> file.

    Raises:
        StorageError: the folder or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{folder}: cannot be made, {reason}") from error
    files: dict[str, Path] = {}
    for name, array in results.items():
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip(".") or "output"
        path, number = folder / f"{plain}.npy", 1
        while path in files.values():
            path, number = folder / f"{plain}.{number}.npy", number + 1
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        write_atomically(path, content.getvalue())
        files[name] = path
    return files


def _read_argument(argument: str, names: Sequence[str]) -> dict[str, Array]:
    name, sign, file = argument.partition("=")
    if sign and not Path(argument).exists():  # a file name may hold a = itself
        return {name: _single(file)}
    arrays = read_arrays(argument)
    if "" not in arrays:
        return arrays
    if len(names) != 1:
        raise UsageError(
            f"--input {argument}: the model has {len(names)} inputs: {', '.join(names)}",
            hint="write NAME=FILE",
        )
    return {names[0]: arrays[""]}


def _single(file: str) -> Array:
    arrays = read_arrays(file)
    if len(arrays) != 1:
        raise UsageError(f"--input: {file} holds {len(arrays)} arrays, one is wanted")
    return next(iter(arrays.values()))

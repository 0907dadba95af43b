"""Weights that lie beside an ONNX file: checked paths, memory-mapped.

A model may come from anyone, so a tensor's location is a claim. It may name only a regular file
inside the model's folder (links are followed before that is decided), and only bytes that the
file has.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
import onnx_ir as ir

from bscompile.errors import ModelError
from bscompile.passes.graph import bits_of


def tensor_nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the tensor's shape and dtype claim.

    Raises:
        ModelError: a negative dimension, or a dtype that onnx does not know.
    """
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r}: negative dimension in {list(tensor.dims)}")
    try:
        bits = bits_of(ir.DataType(tensor.data_type))
    except (TypeError, ValueError):
        raise ModelError(f"tensor {tensor.name!r}: unknown data type {tensor.data_type}") from None
    return int(math.prod(tensor.dims) * bits + 7) // 8


def map_external(tensor: onnx.TensorProto, base: Path | None) -> np.ndarray:
    """uint8 [nbytes]: the tensor's bytes in its file, mapped read-only.

    Args:
        tensor: A tensor whose data_location is EXTERNAL.
        base: The model's folder; None when the model came without one.

    Raises:
        ModelError: the location leaves the folder, or the file lacks those bytes.
    """
    place = f"tensor {tensor.name!r}: external data"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = _resolve(place, location, base)
    wanted = tensor_nbytes(tensor)
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or wanted)
    except ValueError:
        raise ModelError(f"{place}: offset and length must be numbers") from None
    if length != wanted:
        raise ModelError(f"{place}: length {length}, but its shape and dtype need {wanted} bytes")
    size = path.stat().st_size
    if offset < 0 or offset + wanted > size:
        raise ModelError(
            f"{place}: bytes {offset}..{offset + wanted} of {location!r}, which has only {size}",
            hint="copy the file again; it is shorter than the model says",
        )
    if wanted == 0:
        return np.empty(0, dtype=np.uint8)
    try:
        return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(wanted,))
    except OSError as error:
        raise ModelError(f"{place}: cannot read {location!r}: {error.strerror}") from None


def _resolve(place: str, location: str, base: Path | None) -> Path:
    """The file that a location names, inside ``base`` after following links."""
    if not location or "\0" in location:
        raise ModelError(f"{place}: no usable file name")
    if base is None:
        raise ModelError(
            f"{place} in {location!r}, but the model was not read from a file",
            hint="pass the path of the .onnx file, or load the weights into the model first",
        )
    parts = PurePosixPath(location.replace("\\", "/"))
    if parts.is_absolute() or PureWindowsPath(location).is_absolute() or ".." in parts.parts:
        raise ModelError(
            f"{place}: {location!r} points outside the model's folder",
            hint="put the data file beside the .onnx file and save the model again",
        )
    try:
        folder, path = base.resolve(), (base / location).resolve()
    except (OSError, RuntimeError):
        raise ModelError(f"{place}: {location!r} cannot be resolved") from None
    if not path.is_relative_to(folder):
        raise ModelError(
            f"{place}: {location!r} is a link to a file outside the model's folder",
            hint="copy the data file beside the .onnx file",
        )
    if not path.is_file():
        raise ModelError(
            f"{place}: no file {location!r} beside the model",
            hint="copy the data file to the .onnx file's folder",
        )
    return path

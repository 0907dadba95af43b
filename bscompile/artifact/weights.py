"""Weights as safetensors, written and read as a stream into memory that vector code may load.

Reading and writing need numpy only. The ``safetensors`` package is not used here because it
builds the whole file in memory when it writes and gives no alignment when it reads; the files
are its format, and the tests read them with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bscompile.errors import ArtifactError

Array = npt.NDArray[Any]

ALIGNMENT = 64  # a cache line, and the widest vector register
CHUNK = 1 << 22
_HEADER_LIMIT = 100 << 20  # as the format itself sets it
_DTYPES = {
    f"{letter}{bits}": f"{word}{bits}"
    for letter, word, widths in (("F", "float", (16, 32, 64)), ("I", "int", (8, 16, 32, 64)))
    for bits in widths
}
_DTYPES |= {f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)} | {"BOOL": "bool"}
_CODES = {name: code for code, name in _DTYPES.items()}


class Source(Protocol):
    """Where bytes come from: an open file, or one that hashes what passes through."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer, or less of it at the end of the file."""


def empty_aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised C-contiguous array whose first byte is on a 64-byte border."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.__array_interface__["data"][0] % ALIGNMENT
    aligned: Array = room[start : start + size].view(kind).reshape(shape)
    return aligned


def chunks_of(weights: Mapping[str, Array]) -> Iterator[memoryview | bytes]:
    """The bytes of a safetensors file, piece by piece.

    Args:
        weights: name -> array of any numeric dtype; order is kept.

    Raises:
        ValueError: a dtype that the format does not know.
    """
    header, offset = {}, 0
    for name, array in weights.items():
        if array.dtype.name not in _CODES:
            raise ValueError(f"weight {name}: dtype {array.dtype} cannot be stored")
        span = [offset, offset + array.nbytes]
        code = _CODES[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": span}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in weights.values():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, CHUNK):
            yield flat[start : start + CHUNK].data


def read_weights(source: Source, size: int) -> dict[str, Array]:
    """Read a safetensors stream of ``size`` bytes; every array is aligned to 64 bytes.

    Nothing is allocated that ``size`` does not cover.

    Raises:
        ArtifactError: the header is broken, or the arrays do not fill the stream exactly.
    """
    place = "weights.safetensors"
    if size < 8:
        raise ArtifactError(f"{place}: {size} bytes are too few for a header")
    length = int.from_bytes(_take(source, 8), "little")
    if length > min(size - 8, _HEADER_LIMIT):
        raise ArtifactError(f"{place}: a header of {length} bytes does not fit the file")
    try:
        header = json.loads(_take(source, length))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{place}: the header is not valid JSON, {error}") from error
    if not isinstance(header, dict):
        raise ArtifactError(f"{place}: the header is not an object")
    header.pop("__metadata__", None)
    weights, offset = {}, 0
    entries = [(_entry(place, name, value), name) for name, value in header.items()]
    # One piece for all: large enough for huge pages, which numpy asks for. A product with one
    # row of x that reads its weights from memory is half as fast again with them.
    room = empty_aligned((size + ALIGNMENT * len(entries),), np.uint8)
    taken = 0
    for (start, end, dtype, shape), name in sorted(entries):
        if start != offset or end > size - 8 - length:
            raise ArtifactError(f"{place}: {name!r}: its bytes overlap, leave a gap or overrun")
        array = room[taken : taken + end - start].view(dtype).reshape(shape)
        _fill(source, array)
        weights[name], offset = array, end
        taken += -(-(end - start) // ALIGNMENT) * ALIGNMENT
    if offset != size - 8 - length:
        raise ArtifactError(f"{place}: {size - 8 - length - offset} bytes belong to no weight")
    return weights


def _entry(place: str, name: str, value: object) -> tuple[int, int, str, tuple[int, ...]]:
    """(start, end, dtype, shape) of one header entry."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"{place}: {name!r}: dtype, shape and data_offsets are wanted")
    code, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    numbers = [*shape, *span] if isinstance(shape, list) and isinstance(span, list) else [None]
    whole = all(type(n) is int and 0 <= n < 2**62 for n in numbers)
    if not whole or len(span) != 2 or not isinstance(code, str) or code not in _DTYPES:
        raise ArtifactError(f"{place}: {name!r}: broken header entry")
    size = np.dtype(_DTYPES[code]).itemsize
    for length in shape:
        size *= length  # Python integers do not overflow
    if span[1] - span[0] != size:
        raise ArtifactError(f"{place}: {name!r}: {span[1] - span[0]} bytes for a shape of {size}")
    return span[0], span[1], _DTYPES[code], tuple(shape)


def _take(source: Source, count: int) -> bytes:
    room = bytearray(count)
    _read_exactly(source, memoryview(room))
    return bytes(room)


def _fill(source: Source, array: Array) -> None:
    if array.size:
        _read_exactly(source, array.reshape(-1).view(np.uint8).data)


def _read_exactly(source: Source, room: memoryview) -> None:
    filled = 0
    while filled < len(room):
        count = source.readinto(room[filled : filled + CHUNK])
        if not count:
            raise ArtifactError("weights.safetensors: the file ends too early")
        filled += count

"""A static program: how a device without a virtual machine runs a whole model.

Memory is a few storages; a buffer is a typed window into one of them, so reshapes are windows and
scratch memory is shared; a step calls one kernel on some buffers. Every length is known. It says
nothing about the device: what a kernel is (a shader, a function of an object file, a command
stream) is a matter between the target that wrote it and the executor that runs it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from bscompile.artifact.manifest import DTYPES
from bscompile.errors import ArtifactError

#: The artifact member that holds it.
MEMBER: Final = "code/program.json"

Role = Literal["input", "param", "scratch"]

_LARGEST = 1 << 48


@dataclass(frozen=True)
class Storage:
    """A piece of device memory.

    Attributes:
        bytes: Its size.
        role: ``input`` and ``param`` are filled by the executor, in the order in which the
            manifest lists inputs and params; ``scratch`` holds results.
    """

    bytes: int
    role: Role


@dataclass(frozen=True)
class Buffer:
    """A typed, contiguous, row-major window into a storage.

    Attributes:
        storage: Index of the storage.
        offset: Where it begins there, in bytes; a multiple of 64 in scratch.
        shape: Lengths of its axes.
        dtype: A numpy name, such as ``float32``.
    """

    storage: int
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Step:
    """One call of a kernel.

    Attributes:
        kernel: Its name in the code beside the program.
        buffers: Indices of its arguments, inputs first and the outputs last.
    """

    kernel: str
    buffers: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A whole model.

    Attributes:
        storages: All memory; those of the role ``input`` come first, then ``param``, in the
            order of the manifest.
        buffers: All windows.
        steps: In the order in which they run.
        outputs: Buffer of each output, in the order of the manifest.
    """

    storages: tuple[Storage, ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        roles = [storage.role for storage in self.storages]
        if roles != sorted(roles, key=get_args(Role).index):
            raise ValueError("storages come in the order input, param, scratch")
        for i, buffer in enumerate(self.buffers):
            if not 0 <= buffer.storage < len(self.storages):
                raise ValueError(f"buffer {i} lies in storage {buffer.storage}, which is not there")
            if buffer.dtype not in DTYPES:
                raise ValueError(f"buffer {i} has the unknown dtype {buffer.dtype!r}")
            if buffer.offset < 0 or min(buffer.shape, default=0) < 0:
                raise ValueError(f"buffer {i} has a negative offset or length")
            if buffer.offset + buffer.bytes > self.storages[buffer.storage].bytes:
                raise ValueError(f"buffer {i} reaches beyond its storage")
        used = [index for step in self.steps for index in step.buffers]
        if any(not 0 <= index < len(self.buffers) for index in (*used, *self.outputs)):
            raise ValueError("a step or output names a buffer that is not there")

    def indices(self, role: Role) -> tuple[int, ...]:
        """The storages of one role."""
        return tuple(i for i, storage in enumerate(self.storages) if storage.role == role)

    def to_json(self) -> str:
        """The text of code/program.json."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Program:
        """Read code/program.json and check that every index and window is inside.

        Raises:
            ArtifactError: it is not a program, or one that reaches outside its memory.
        """
        try:
            body = json.loads(text)
            return cls(
                tuple(Storage(_size(s["bytes"]), _role(s["role"])) for s in body["storages"]),
                tuple(
                    Buffer(
                        _size(b["storage"]),
                        _size(b["offset"]),
                        tuple(_size(length) for length in b["shape"]),
                        str(b["dtype"]),
                    )
                    for b in body["buffers"]
                ),
                tuple(
                    Step(str(s["kernel"]), tuple(_size(i) for i in s["buffers"]))
                    for s in body["steps"]
                ),
                tuple(_size(i) for i in body["outputs"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactError(f"{MEMBER}: not a static program: {reason}") from error


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST:
        raise ValueError(f"a size or index is wanted, got {value!r}")
    return value


def _role(value: Any) -> Role:
    if value not in get_args(Role):
        raise ValueError(f"unknown role {value!r}")
    role: Role = value
    return role


#: Where each weight begins in a weights image; as much as any vector register wants.
IMAGE_ALIGNMENT: Final = 128
_FACTOR = 0x100000001B3
_WORDS = 1 << 13


def weights_image(params: Iterable[npt.NDArray[Any]]) -> Iterator[memoryview]:
    """The bytes of weights.bin: the param storages one after the other, each padded with zeros.

    Args:
        params: In the order of the program, in the dtype that the kernels want.
    """
    for array in params:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if flat.size:
            yield flat.data
        if padding := -flat.size % IMAGE_ALIGNMENT:
            yield memoryview(bytes(padding))


def image_size(pieces: Iterable[memoryview]) -> int:
    """Bytes of a weights image."""
    return sum(piece.nbytes for piece in pieces)


def image_checksum(pieces: Iterable[memoryview]) -> int:
    """Σ word[i] · factor^(count - 1 - i) mod 2^64 over its 8-byte words, as the runner counts."""
    total, rest = 0, b""
    powers = np.full(_WORDS, _FACTOR, np.uint64)
    powers[0] = 1
    powers = np.cumprod(powers)[::-1]
    for piece in pieces:
        data = rest + bytes(piece)
        whole = len(data) // 8 * 8
        words, rest = np.frombuffer(data[:whole], "<u8"), data[whole:]
        for start in range(0, words.size, _WORDS):
            chunk = words[start : start + _WORDS]
            part = int((chunk * powers[-chunk.size :]).sum(dtype=np.uint64))
            total = (total * pow(_FACTOR, chunk.size, 1 << 64) + part) % (1 << 64)
    return total

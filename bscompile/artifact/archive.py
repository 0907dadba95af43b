"""The artifact, model.bsc: one zip file that is checked before anything in it runs.

    manifest.json          what it is, what it needs, and the sha256 of everything else
    code/...               made by the target; for the CPU code/model.so
    weights.safetensors    live blocks and factors only, never compressed
    report.json            what happened to each layer

Only numpy and the standard library are needed here. Nothing is unpickled, unpacked to a path
that the file chooses, or believed before it is compared with the manifest; memory is taken only
for sizes that the file on disk can hold. docs/artifact.md is the format's description.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bscompile.artifact.manifest import Manifest, Member, ParamSpec, TensorSpec
from bscompile.artifact.weights import chunks_of, read_weights
from bscompile.errors import ArtifactError, StorageError
from bscompile.files import atomic_file

__all__ = [
    "Artifact",
    "Manifest",
    "Member",
    "ParamSpec",
    "TensorSpec",
    "pack_params",
    "read_artifact",
    "write_artifact",
]

Array = npt.NDArray[Any]

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
REPORT = "report.json"
CODE = "code/model.so"

_MANIFEST_LIMIT = 64 << 20
_DEFLATED_LIMIT = 512 << 20  # of one unpacked member; weights are stored and not bound by it
_MEMBERS_LIMIT = 1000
_SAMPLE = 4096
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_./-]+")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes


@dataclass(frozen=True, eq=False)
class Artifact:
    """An artifact as read: checked, and nothing of it executed.

    Attributes:
        manifest: What it says about itself.
        members: Every member but the weights, name -> bytes.
        weights: name -> array, aligned to 64 bytes; empty where they were not asked for.
    """

    manifest: Manifest
    members: Mapping[str, bytes]
    weights: Mapping[str, Array]


def write_artifact(
    path: str | Path,
    manifest: Manifest,
    members: Mapping[str, bytes],
    weights: Mapping[str, Array],
    report: str,
) -> Path:
    """Write an artifact atomically.

    Args:
        path: Where to; a file of that name is replaced when the new one is complete.
        manifest: Its ``members`` field is filled in here.
        members: Code, such as ``code/model.so`` -> bytes; compressed.
        weights: name -> array in the dtype to store, as the manifest's params name them.
        report: The text of report.json.

    Returns:
        The path.

    Raises:
        StorageError: the place cannot be written, or the disk is full.
        ValueError: the manifest's params and the weights do not agree.
    """
    _check_params(manifest, weights)
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        sums = {WEIGHTS: _add(archive, WEIGHTS, chunks_of(weights), zipfile.ZIP_STORED)}
        for name, content in {**members, REPORT: report.encode()}.items():
            sums[name] = _add(archive, name, [content], zipfile.ZIP_DEFLATED)
        complete = manifest.with_members(sums)
        _add(archive, MANIFEST, [complete.to_json().encode()], zipfile.ZIP_DEFLATED)
    return Path(path)


def pack_params(
    params: Iterable[tuple[str, Array]],
) -> tuple[dict[str, Array], tuple[ParamSpec, ...]]:
    """Turn the arguments of the compiled function into weights to store and their specs.

    An array that is passed twice is stored once. float32 that holds only values of float16, as
    the weights of a float16 model do, is stored as float16.

    Args:
        params: (name, array in the dtype that the code wants), in the order of the arguments.

    Returns:
        (name -> array to store, one spec for each argument).
    """
    weights: dict[str, Array] = {}
    kept = list(params)  # alive, so that an id names one array
    first_name: dict[int, str] = {}
    specs = []
    for wanted, array in kept:
        if id(array) not in first_name:
            name, number = wanted, 1
            while name in weights:
                name, number = f"{wanted}.{number}", number + 1
            first_name[id(array)] = name
            weights[name] = _narrowed(array)
        name = first_name[id(array)]
        stored = weights[name].dtype.name
        specs.append(ParamSpec(name, tuple(array.shape), stored, array.dtype.name))
    return weights, tuple(specs)


def _narrowed(array: Array) -> Array:
    """float32 as float16 where that keeps every value, all else as it is."""
    if array.dtype != np.float32 or not array.size:
        return array
    head = array.reshape(-1)[:_SAMPLE]  # few weights pass this, so few pay for the whole
    if not _is_float16(head) or not _is_float16(array):
        return array
    return array.astype(np.float16)


def _is_float16(array: Array) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(array.astype(np.float16).astype(np.float32), array)


def read_artifact(path: str | Path, *, weights: bool = True) -> Artifact:
    """Read an artifact and compare every byte with the manifest's hashes.

    Args:
        path: The .bsc file.
        weights: False leaves the weights out, for those who only want to look.

    Raises:
        StorageError: the file cannot be opened or read.
        ArtifactError: it is not an artifact, is broken, changed, or of another version.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _read(file, size, weights)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.message}", error.hint) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{path}: cannot be read, {reason}") from error


# ---------------------------------------------------------------- writing


def _add(
    archive: zipfile.ZipFile, name: str, pieces: Iterable[bytes | memoryview], method: int
) -> Member:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = method
    entry.external_attr = 0o644 << 16
    digest, size = hashlib.sha256(), 0
    with archive.open(entry, "w", force_zip64=True) as target:
        for piece in pieces:
            target.write(piece)
            digest.update(piece)
            size += len(piece)
    return Member(size, digest.hexdigest())


def _check_params(manifest: Manifest, weights: Mapping[str, Array]) -> None:
    for param in manifest.params:
        array = weights.get(param.name)
        if array is None:
            raise ValueError(f"the manifest names a weight {param.name!r} that is not there")
        if array.shape != param.shape or array.dtype.name != param.stored:
            raise ValueError(
                f"weight {param.name!r} is {array.dtype.name}{list(array.shape)}, "
                f"the manifest says {param.stored}{list(param.shape)}"
            )
    spare = set(weights) - {param.name for param in manifest.params}
    if spare:
        raise ValueError(f"weight {min(spare)!r} is used by no parameter")


# ---------------------------------------------------------------- reading

# What zipfile and zlib raise on broken input, by their sources and by fuzzing.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,  # unknown compression, strong encryption
    RuntimeError,  # encrypted members
    EOFError,
    ValueError,
    OverflowError,
    IndexError,
    UnicodeError,
)


def _read(file: IO[bytes], size: int, with_weights: bool) -> Artifact:
    try:
        archive = zipfile.ZipFile(file)
    except _BROKEN_ZIP as error:
        hint = "bscompile build makes one; or it was cut short, then copy it again"
        raise ArtifactError(f"not an artifact, {_reason(error)}", hint) from error
    entries = _entries(archive, size)
    manifest = Manifest.from_json(_read_manifest(archive, entries))
    _compare_with_manifest(entries, manifest)
    members: dict[str, bytes] = {}
    arrays: dict[str, Array] = {}
    for name, expected in manifest.members.items():
        if name == WEIGHTS and not with_weights:
            continue
        problem = None
        try:
            if name == WEIGHTS:
                source = _HashingReader(_raw_stored(file, entries[name], size))
                try:
                    arrays = read_weights(source, expected.size)
                except ArtifactError as error:
                    problem = error  # after the hash, which tells damage from a wrong build
                    source.skip_to(expected.size)
            else:
                with archive.open(entries[name]) as stream:
                    source = _HashingReader(stream)
                    members[name] = source.read_all()
        except _BROKEN_ZIP as error:
            raise ArtifactError(f"{name}: {_reason(error)}") from error
        if source.hexdigest() != expected.sha256:
            raise ArtifactError(
                f"{name}: its content was changed after the build, the sha256 differs",
                hint="build the model again, or copy the artifact again",
            )
        if problem is not None:
            raise problem
    if with_weights:
        _compare_weights(manifest, arrays)
    return Artifact(manifest, members, arrays)


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The zip's directory, with plain names, each once, and sizes that the file can hold."""
    entries: dict[str, zipfile.ZipInfo] = {}
    listed = archive.infolist()
    if len(listed) > _MEMBERS_LIMIT:
        raise ArtifactError(f"{len(listed)} members, at most {_MEMBERS_LIMIT} are expected")
    for entry in listed:
        name = entry.filename
        if name in entries:
            raise ArtifactError(f"the member {name!r} is there twice")
        if not _PLAIN_NAME.fullmatch(name) or {"", ".", ".."} & set(name.split("/")):
            raise ArtifactError(f"the member name {name!r} is not a plain path")
        if not 0 <= entry.header_offset < size:
            raise ArtifactError(f"{name}: lies outside the file")
        if entry.flag_bits & 0x1:
            raise ArtifactError(f"{name}: encrypted")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if not stored and entry.compress_type != zipfile.ZIP_DEFLATED:
            raise ArtifactError(f"{name}: unknown compression {entry.compress_type}")
        limit = size if stored else _DEFLATED_LIMIT
        if entry.compress_size > size or entry.file_size > limit:
            raise ArtifactError(f"{name}: its size of {entry.file_size} bytes cannot be true")
        entries[name] = entry
    return entries


def _read_manifest(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> bytes:
    if MANIFEST not in entries:
        raise ArtifactError(f"not an artifact, it has no {MANIFEST}")
    if entries[MANIFEST].file_size > _MANIFEST_LIMIT:
        raise ArtifactError(f"{MANIFEST}: {entries[MANIFEST].file_size} bytes are too many")
    try:
        return archive.read(entries[MANIFEST])
    except _BROKEN_ZIP as error:
        raise ArtifactError(f"{MANIFEST}: {_reason(error)}") from error


def _compare_with_manifest(entries: Mapping[str, zipfile.ZipInfo], manifest: Manifest) -> None:
    present, wanted = set(entries) - {MANIFEST}, set(manifest.members)
    if wanted - present:
        raise ArtifactError(f"the member {min(wanted - present)!r} is missing")
    if present - wanted:
        raise ArtifactError(f"the member {min(present - wanted)!r} is not in the manifest")
    for name in (WEIGHTS, REPORT):
        if name not in wanted:
            raise ArtifactError(f"the member {name!r} is missing")
    for name, member in manifest.members.items():
        if entries[name].file_size != member.size:
            raise ArtifactError(
                f"{name}: {entries[name].file_size} bytes, the manifest says {member.size}"
            )
    if entries[WEIGHTS].compress_type != zipfile.ZIP_STORED:
        raise ArtifactError(f"{WEIGHTS}: must not be compressed")


def _compare_weights(manifest: Manifest, weights: Mapping[str, Array]) -> None:
    try:
        _check_params(manifest, weights)
    except ValueError as error:
        raise ArtifactError(str(error)) from error


class _HashingReader:
    """Reads a member and hashes what passes through."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._count = 0

    def readinto(self, buffer: memoryview, /) -> int:
        count: int = self._stream.readinto(buffer)  # type: ignore[attr-defined]  # BinaryIO has it
        self._digest.update(buffer[:count])
        self._count += count
        return count

    def skip_to(self, position: int) -> None:
        """Hash what lies before ``position``."""
        room = memoryview(bytearray(1 << 20))
        while self._count < position and self.readinto(room[: position - self._count]):
            pass

    def read_all(self) -> bytes:
        content = self._stream.read()
        self._digest.update(content)
        return content

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _raw_stored(file: IO[bytes], entry: zipfile.ZipInfo, size: int) -> IO[bytes]:
    """The archive's file, placed at the first byte of a stored member.

    Weights are read past zipfile: its copies and its second checksum would double the time.
    """
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ArtifactError(f"{entry.filename}: no local header where the directory says")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    if start + entry.file_size > size:
        raise ArtifactError(f"{entry.filename}: reaches past the end of the file")
    file.seek(start)
    return file


def _reason(error: Exception) -> str:
    text = str(error).strip().split("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:] if text else type(error).__name__

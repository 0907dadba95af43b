"""Files and folders that are there completely or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bscompile.errors import StorageError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A new file that takes its name only when the block ends without an exception.

    It is written beside its goal, so that the rename stays within one file system, and flushed
    to the disk first. Whatever ends the block early (a full disk, an error, Ctrl-C) removes it;
    a file that had the name before stays as it was.

    Raises:
        StorageError: the place cannot be written, or the disk is full.
    """
    goal = Path(path)
    staged, descriptor = _stage(goal)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, goal)
        _sync_folder(goal.parent)
    except OSError as error:
        raise _storage_error(goal, error) from error
    finally:
        with suppress(OSError):
            staged.unlink()  # gone already after a success


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that takes its name only when the block ends without an exception.

    It is filled beside its goal. A folder that had the name before is replaced when the new one
    is complete; what may be replaced is for the caller to decide.

    Raises:
        StorageError: the place cannot be written, or the disk is full.
    """
    goal = Path(path)
    staged = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}.tmp")
    former = staged.with_suffix(".old")
    try:
        staged.mkdir()
        yield staged
        if goal.exists():
            os.rename(goal, former)
        os.rename(staged, goal)
        _sync_folder(goal.parent)
    except OSError as error:
        raise _storage_error(goal, error) from error
    finally:
        if former.exists() and not goal.exists():
            os.rename(former, goal)
        for folder in (staged, former):
            shutil.rmtree(folder, ignore_errors=True)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a whole file with ``atomic_file``.

    Raises:
        StorageError: the place cannot be written, or the disk is full.
    """
    with atomic_file(path) as file:
        file.write(content)


def check_readable(path: str | Path) -> None:
    """Find out at once, before anything heavy is imported, that a file is not there.

    Raises:
        StorageError: the file cannot be opened.
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{path}: cannot be read, {reason}") from error


def check_writable(path: str | Path) -> None:
    """Find out at once what ``atomic_file`` would meet after a long computation.

    Raises:
        StorageError: the place cannot be written.
    """
    staged, descriptor = _stage(Path(path))
    os.close(descriptor)
    staged.unlink()


def sha256_of(path: str | Path) -> str:
    """The hash of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stage(goal: Path) -> tuple[Path, int]:
    """A new, open, empty file beside the goal."""
    if goal.exists() and not goal.is_file():
        kind = "a folder" if goal.is_dir() else "not a regular file"
        raise StorageError(f"{goal}: cannot be written, it is {kind}", hint="name a file")
    staged = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}.tmp")
    try:
        # The mode that open() uses, so that the umask decides as for any other file.
        return staged, os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise _storage_error(goal, error) from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some file systems do not offer that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _storage_error(path: Path, error: OSError) -> StorageError:
    reason = (error.strerror or str(error)).lower()
    hint = None if path.parent.is_dir() else f"make the folder {path.parent} first"
    return StorageError(f"{path}: cannot be written, {reason}", hint)

"""One file for the machine with the GPU: what was built, packed as small as it gets.

Machines are lent with little to carry: 64 MiB are common. What does not fit is left out, the
least important first, and said.
"""

from __future__ import annotations

import json
import lzma
import tarfile
from pathlib import Path
from typing import IO

LIMIT = 60 << 20  # bytes of the archive
_PRESET = 6


def pack(folder: Path, limit: int = LIMIT) -> tuple[Path, list[str]]:
    """Write ``<folder>.tar.xz``; models are left out, the last ones first, until it fits.

    Returns:
        The archive, and a line for each part with its bytes, and for each model left out.

    Raises:
        SystemExit: what is not models alone is over the limit.
    """
    path, left_out = folder.with_suffix(".tar.xz"), set[str]()
    models = [file.stem for file in _by_importance(folder / "models")]
    while True:
        sizes = _write(folder, path, left_out)
        if path.stat().st_size <= limit:
            break
        if not models:
            raise SystemExit(f"{path} has {path.stat().st_size} bytes, and {limit} may be carried")
        left_out.add(models.pop())
    lines = [f"{part:12} {size / 2**20:6.1f} MiB unpacked" for part, size in sorted(sizes.items())]
    lines += [f"{name} is left out: no room" for name in sorted(left_out)]
    lines.append(f"{path}: {path.stat().st_size / 2**20:.1f} of {limit / 2**20:.0f} MiB")
    return path, lines


def unpack(folder: Path) -> None:
    """Unpack ``<folder>.tar.xz`` where the folder is not there."""
    path = folder.with_suffix(".tar.xz")
    if not folder.exists() and path.exists():
        with tarfile.open(path, "r:xz") as archive:
            archive.extractall(folder, filter="data")


def _write(folder: Path, path: Path, left_out: set[str]) -> dict[str, int]:
    """The archive without some models; bytes of each part before they are packed."""
    sizes: dict[str, int] = {}
    with lzma.open(path, "wb", preset=_PRESET) as packed:
        _fill(packed, folder, left_out, sizes)
    return sizes


def _fill(packed: IO[bytes], folder: Path, left_out: set[str], sizes: dict[str, int]) -> None:
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            inside = file.relative_to(folder)
            if inside.parts[0] == "models" and file.stem in left_out:
                continue
            part = inside.parts[0] if len(inside.parts) > 1 else "kernels"
            sizes[part] = sizes.get(part, 0) + file.stat().st_size
            archive.add(file, str(inside))


def _by_importance(folder: Path) -> list[Path]:
    """The artifacts, in the order in which they are measured."""
    listed = folder / "models.json"
    if not listed.exists():
        return []
    names = [call["name"] for call in json.loads(listed.read_text())["calls"]]
    return [folder / f"{name}.bsc" for name in names]

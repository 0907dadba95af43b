"""Tuning records on disk: one line of JSON each, appended; merging two databases is a union.

An append is one write under a lock, so two processes may tune at once and Ctrl-C costs at most
the candidate that was being measured. A line that was cut or changed is skipped and reported.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from bscompile.artifact import read_artifact
from bscompile.errors import StorageError
from bscompile.tuning.record import OK, TuningKey, TuningRecord

MEMBER = "tuning.jsonl"  # of an artifact: the records that it was built from
_DENSE_MARGIN = 0.98  # another form must beat the dense one by more than noise


def default_path() -> Path:
    """Where the database is when the user names none."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "bscompile" / "tuning.jsonl"


def read_database(path: str | Path) -> Database:
    """Read a database, or the one that an artifact carries; writing to it goes nowhere.

    Raises:
        StorageError: the file cannot be read.
        ArtifactError: it is a broken artifact.
    """
    source = Path(path)
    try:
        with open(source, "rb") as file:
            packed = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{source}: cannot be read, {reason}") from error
    if packed:
        content = read_artifact(source, weights=False).members.get(MEMBER, b"")
        return Database.from_text(content.decode(errors="replace"), f"{source}:{MEMBER}")
    return Database.from_text("\n".join(_read_lines(source)), str(source))


class Database:
    """The records of one file, and those added since it was read.

    Attributes:
        path: The file; None keeps records in memory only.
        damaged: One sentence for each line that could not be read.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.damaged: list[str] = []
        self._by_key: dict[str, list[TuningRecord]] = defaultdict(list)
        self._lines: set[str] = set()
        if self.path is not None:
            for number, line in enumerate(_read_lines(self.path), 1):
                self._take(line, f"{self.path}:{number}")

    @classmethod
    def from_text(cls, text: str, place: str) -> Database:
        """Read the records of a text, such as an artifact's member; nothing is kept on disk."""
        database = cls()
        for number, line in enumerate(text.split("\n"), 1):
            database._take(line, f"{place}:{number}")
        return database

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[TuningRecord]:
        for records in self._by_key.values():
            yield from records

    def add(self, records: Iterable[TuningRecord]) -> int:
        """Keep records that are not there yet, at once on disk; return how many those were.

        Raises:
            StorageError: the file cannot be written.
        """
        lines = {record.to_json(): record for record in records}
        new = {line: record for line, record in lines.items() if line not in self._lines}
        if new and self.path is not None:
            _append(self.path, "".join(f"{line}\n" for line in new))
        for line, record in new.items():
            self._keep(record, line)
        return len(new)

    def merge(self, other: Database) -> int:
        """Take over the records of another database; return how many were new."""
        return self.add(other)

    def of(self, key: TuningKey) -> tuple[TuningRecord, ...]:
        """Every record of a layer; none that another machine or other code measured."""
        return tuple(self._by_key.get(key.digest, ()))

    def best(self, key: TuningKey) -> Best | None:
        """What to run for a layer; None where it was never tuned here."""
        return choose(self.of(key))

    def nearest(self, key: TuningKey, limit: int = 3) -> list[tuple[float, Best]]:
        """The most similar tuned layers of the same machine and code: (distance, what won)."""
        found = []
        for records in self._by_key.values():
            other = records[0].key
            if other.machine != key.machine or other == key:
                continue
            distance = _distance(key, other)
            if math.isfinite(distance) and (best := choose(records)):
                found.append((distance, best))
        found.sort(key=lambda entry: entry[0])
        return found[:limit]

    def to_text(self, keys: Iterable[TuningKey]) -> str:
        """The lines of some layers, to ship with what was built from them."""
        records = (record for key in dict.fromkeys(keys) for record in self.of(key))
        return "".join(f"{record.to_json()}\n" for record in records)

    def _take(self, line: str, place: str) -> None:
        if not line.strip():
            return
        try:
            self._keep(TuningRecord.from_json(line), line.strip())
        except ValueError as error:
            self.damaged.append(f"{place}: skipped, {error}")

    def _keep(self, record: TuningRecord, line: str) -> None:
        if line not in self._lines:
            self._lines.add(line)
            self._by_key[record.key.digest].append(record)


class Best:
    """The outcome of a layer's tuning.

    Attributes:
        winner: What to run; the dense form where nothing is faster.
        dense: The dense form, timed in the same run.
        records: Everything that was tried for the layer.
    """

    def __init__(
        self, winner: TuningRecord, dense: TuningRecord, records: tuple[TuningRecord, ...]
    ) -> None:
        self.winner, self.dense, self.records = winner, dense, records

    @property
    def right(self) -> list[TuningRecord]:
        """What may be run, fastest first."""
        unsafe = {record.variant for record in self.records if record.status != OK}
        safe = (record for record in self.records if record.variant not in unsafe)
        return sorted(safe, key=lambda record: record.time)


def choose(records: Iterable[TuningRecord]) -> Best | None:
    """The fastest candidate of the newest run that timed the dense form beside it.

    Finalists are compared with finalists. A run that was stopped before its final is judged by
    its trials, if it had come to others than the dense form that every run begins with. What was
    ever wrong, crashed or hung is never chosen.
    """
    everything = tuple(records)
    unsafe = {record.variant for record in everything if record.status != OK}
    usable = [r for r in everything if r.status == OK and r.variant not in unsafe]
    rounds = sorted({(r.final, r.run) for r in usable}, reverse=True)
    for final, run in rounds:
        together = [r for r in usable if r.final == final and r.run == run]
        dense = min(
            (r for r in together if r.variant.form == "dense"), key=lambda r: r.time, default=None
        )
        tried = {record.variant.form for record in everything if record.run == run}
        begun = not final and tried == {"dense"} and together[0].key.problem.form != "dense"
        if dense is None or begun:
            continue
        winner = min(together, key=lambda r: r.time)
        if winner.time > _DENSE_MARGIN * dense.time:
            winner = dense
        return Best(winner, dense, everything)
    return None


def _distance(one: TuningKey, other: TuningKey) -> float:
    """0 for layers that differ in their pattern alone; infinity where nothing carries over."""
    a, b = one.problem, other.problem
    if (a.form, a.dtype) != (b.form, b.dtype):
        return math.inf
    pairs = (
        (a.rows, b.rows), (a.n, b.n), (a.k, b.k), (a.rank + 1, b.rank + 1),
        (a.nnzb + 1, b.nnzb + 1), (a.block[0], b.block[0]), (a.block[1], b.block[1]),
    )  # fmt: skip
    distance = sum(abs(math.log2(x / y)) for x, y in pairs)
    return distance + (a.epilogue != b.epilogue) * 0.1 + ((a.m is None) != (b.m is None)) * 0.1


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{path}: the tuning database cannot be read, {reason}") from error


def _append(path: Path, text: str) -> None:
    """One write at the end of the file, after whatever another process wrote or broke off."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    text = "\n" + text
            file.write(text.encode())
            file.flush()
            with contextlib.suppress(OSError):  # a pipe or a network file system
                os.fsync(file.fileno())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(
            f"{path}: the tuning database cannot be written, {reason}", "name another with --db"
        ) from error

"""How the kernels of a static program are started on a GPU-like device.

A kernel of the program is one or more launches in a row: an entry point of the device code, its
arguments in the order in which the device code takes them, groups and threads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from bscompile.artifact.program import Program
from bscompile.errors import ArtifactError

#: The artifact member that holds them.
MEMBER: Final = "code/launches.json"

_LARGEST = 1 << 31

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One start of one entry point.

    Attributes:
        entry: Its name in the device code.
        arguments: For each argument of the entry point, which buffer of the program's step it is.
        grid: Groups along x, y and z.
        block: Threads of one group along x, y and z.
        shared_bytes: Memory that the threads of one group share.
    """

    entry: str
    arguments: tuple[int, ...]
    grid: Sizes
    block: Sizes
    shared_bytes: int = 0

    @property
    def threads(self) -> int:
        """Threads of one group."""
        x, y, z = self.block
        return x * y * z


@dataclass(frozen=True)
class Launches:
    """Every kernel of a program.

    Attributes:
        kernels: Name in the program -> its launches in order.
    """

    kernels: Mapping[str, tuple[Launch, ...]]

    def check(self, program: Program) -> None:
        """Refuse launches that do not fit the program's steps.

        Raises:
            ArtifactError: a step has no launches, or one of them wants a buffer that its step
                does not have.
        """
        for step in program.steps:
            if step.kernel not in self.kernels:
                raise ArtifactError(f"{MEMBER}: the kernel {step.kernel!r} is missing")
            for launch in self.kernels[step.kernel]:
                if max(launch.arguments, default=0) >= len(step.buffers):
                    raise ArtifactError(f"{MEMBER}: {launch.entry} wants more than its step has")

    def to_json(self) -> str:
        """The text of code/launches.json."""
        return json.dumps({k: [asdict(one) for one in v] for k, v in self.kernels.items()})

    @classmethod
    def from_json(cls, text: str | bytes) -> Launches:
        """Read code/launches.json; every number is checked.

        Raises:
            ArtifactError: it is something else.
        """
        try:
            body = json.loads(text)
            return cls({name: tuple(map(_launch, entries)) for name, entries in body.items()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactError(f"{MEMBER}: not launches: {reason}") from error


def _launch(body: Any) -> Launch:
    entry = body["entry"]
    if not isinstance(entry, str) or not entry.isidentifier():
        raise ValueError(f"an entry point is wanted, got {entry!r}")
    return Launch(
        entry,
        tuple(_number(value, 0) for value in body["arguments"]),
        _sizes(body["grid"]),
        _sizes(body["block"]),
        _number(body["shared_bytes"], 0),
    )


def _sizes(values: Any) -> Sizes:
    x, y, z = (_number(value, 1) for value in values)
    return x, y, z


def _number(value: Any, low: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < _LARGEST:
        raise ValueError(f"a number from {low} on is wanted, got {value!r}")
    return value

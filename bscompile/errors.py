"""Every error that a user can cause: one line, a hint where there is one, an exit code.

The command line prints these without a traceback; anything else that escapes is a bug and
keeps its traceback. Codes are listed in docs/exit_codes.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BscompileError(Exception):
    """Base of all errors with a message for the user.

    Args:
        message: One line: the place, what was wanted, what was found.
        hint: The next step, if there is one.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class VerificationError(BscompileError):
    """Results differ by more than the tolerance."""

    exit_code = 1


class UsageError(BscompileError):
    """The command or call itself is wrong: unknown name, missing or misshapen input."""

    exit_code = 2


class ModelError(BscompileError):
    """The ONNX model is broken, hostile or uses what cannot be compiled."""

    exit_code = 3


class ArtifactError(BscompileError):
    """The .bsc file is broken, changed, or made for another machine."""

    exit_code = 4


class TargetError(BscompileError):
    """The target is unknown, absent, or lacks a tool it needs."""

    exit_code = 5


class StorageError(BscompileError):
    """A file cannot be read or written."""

    exit_code = 6


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """A hint that lists the known names and suggests the nearest one.

    Args:
        wanted: What the user typed.
        known: The names that exist.

    Returns:
        For example ``known: cpu, cuda. Did you mean 'cuda'?``
    """
    names = sorted(known)
    text = f"known: {', '.join(names)}"
    near = difflib.get_close_matches(wanted, names, n=1)
    return f"{text}. Did you mean '{near[0]}'?" if near else text

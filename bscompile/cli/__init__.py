"""The command line. Parsing and printing only; the work is done by the Python API."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes them from the process.

    Returns:
        The exit code, see docs/exit_codes.md.
    """
    from bscompile.cli.boundary import guarded

    return guarded(arguments)

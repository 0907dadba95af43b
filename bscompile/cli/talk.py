"""What commands share: options, the talk on stderr, the result on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bscompile.cli.time_left import TimeLeft, spelled
from bscompile.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

F = TypeVar("F", bound=Callable[..., Any])

_PLAIN_WIDTH = 160  # where there is no terminal to ask


class Talk:
    """How much to say, and how.

    Attributes:
        level: 0 normal; negative for each -q, positive for each -v.
        json: Whether the result is for a program.
    """

    def __init__(self, quiet: int = 0, verbose: int = 0, json_wanted: bool = False) -> None:
        self.level = verbose - quiet
        self.json = json_wanted

    def say(self, what: RenderableType) -> None:
        """Tell a person something, on stderr."""
        if self.level >= 0:
            self._print(what, to_stderr=True)

    def say_how(self, stand_in: str, remark: str = "") -> None:
        """Tell a person what ran the code where that is not just the device, see Executor."""
        if stand_in:
            self.say(f"run by {stand_in}, whose time says nothing of the device it is made for")
        if remark:
            self.say(remark)

    def show(self, what: RenderableType) -> None:
        """Print the result for a person, on stdout."""
        self._print(what, to_stderr=False)

    def give(self, result: Any) -> None:
        """Print the result for a program, on stdout."""
        sys.stdout.write(json.dumps(result, indent=1, allow_nan=False) + "\n")

    @contextmanager
    def phases(self, shares: Mapping[str, float] | None = None) -> Iterator[Callable[[str], None]]:
        """A function to call at the start of each phase.

        On a terminal one line shows the phase, the time since the beginning and, where the usual
        shares of the phases are given, about how much is left; elsewhere, and with -v, each phase
        that took long enough to notice leaves a line.
        """
        if self.level < 0:
            yield lambda line: None
        elif self.level == 0 and sys.stderr.isatty():
            with self._spinner(TimeLeft(shares or {})) as start:
                yield start
        else:
            with self._log() as start:
                yield start

    @contextmanager
    def _spinner(self, time_left: TimeLeft) -> Iterator[Callable[[str], None]]:
        from rich.console import Console
        from rich.progress import (
            Progress,
            ProgressColumn,
            SpinnerColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.text import Text

        class Left(ProgressColumn):
            def render(self, _task: Task) -> Text:
                return Text(spelled(time_left.left()))

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), Left())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("starting", total=None)

            def start(line: str) -> None:
                time_left.start(line)
                progress.update(task, description=line)

            yield start

    @contextmanager
    def _log(self) -> Iterator[Callable[[str], None]]:
        phase, begun = "", time.perf_counter()

        def finish() -> None:
            seconds = time.perf_counter() - begun
            if phase and (self.level > 0 or seconds >= 0.5):
                sys.stderr.write(f"{phase}: {seconds:.1f} s\n")
                sys.stderr.flush()

        def start(line: str) -> None:
            nonlocal phase, begun
            finish()
            phase, begun = line, time.perf_counter()

        yield start
        finish()

    def _print(self, what: RenderableType, *, to_stderr: bool) -> None:
        from rich.console import Console

        stream = sys.stderr if to_stderr else sys.stdout
        # rich itself honours NO_COLOR and FORCE_COLOR
        width = None if stream.isatty() else _PLAIN_WIDTH
        Console(file=stream, width=width, highlight=False, markup=False).print(what)


def talk_options(command: F) -> F:
    """Add -q, -v and --json; the command receives them as one ``talk``."""

    def wrapped(quiet: int, verbose: int, json_wanted: bool, **options: Any) -> Any:
        return command(talk=Talk(quiet, verbose, json_wanted), **options)

    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    wrapped.__dict__.update(command.__dict__)
    for option in (
        click.option("--json", "json_wanted", is_flag=True, help="Print the result as JSON."),
        click.option("-v", "--verbose", count=True, help="Say more."),
        click.option("-q", "--quiet", count=True, help="Say less; errors are always shown."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]  # same command, other options


def threads_option(command: F) -> F:
    """Add --threads."""
    return click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads."
    )(command)


def dims_option(command: F) -> F:
    """Add --dim NAME=LENGTH, which may be repeated."""
    return click.option(
        "--dim",
        "dims",
        multiple=True,
        metavar="NAME=LENGTH",
        help="Length of a symbolic dimension.",
    )(command)


def parse_dims(dims: tuple[str, ...]) -> dict[str, int]:
    """``("batch=4",)`` -> ``{"batch": 4}``.

    Raises:
        UsageError: not of that form.
    """
    lengths = {}
    for text in dims:
        name, _, length = text.rpartition("=")
        if not name or not length.isascii() or not length.isdigit() or int(length) < 1:
            raise UsageError(f"--dim {text}: NAME=LENGTH is wanted, such as batch=4")
        lengths[name] = int(length)
    return lengths

"""The one place where errors become text and exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

import click

from bscompile.cli.app import app
from bscompile.errors import BscompileError

USAGE = 2
BUG = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
BROKEN_PIPE = 128 + signal.SIGPIPE


def guarded(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and turn whatever it raises into a line and a code."""
    with _signals() as received:
        return _guarded(arguments, received)


def _guarded(arguments: Sequence[str] | None, received: list[int]) -> int:
    # What libraries log is not addressed to our users; we say ourselves what matters to them.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        # Not app.main(): it would handle interrupts and closed pipes in its own way.
        given = sys.argv[1:] if arguments is None else list(arguments)
        with app.make_context("bscompile", given) as context:
            result = app.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except BscompileError as error:
        return _stopped(received) or _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        help_line = f" (see {where.command_path} --help)" if where else ""
        return _fail(f"{error.format_message().rstrip('.')}{help_line}", USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception:
        if received:
            return _stopped(received)
        traceback.print_exc()
        return _fail("this is a bug in bscompile; please report it with the lines above", BUG)
    return result if isinstance(result, int) else 0


def _stopped(received: list[int]) -> int:
    """The exit code if a signal came that code between us and Python made another error of."""
    if not received:
        return 0
    return _interrupted() if received[0] == signal.SIGINT else TERMINATED


def _interrupted() -> int:
    return _fail("interrupted; no file was left half written", INTERRUPTED)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"bscompile: {_printable(message)}\n")
    return code


def _printable(message: str) -> str:
    """One line without control characters: names in it may come from a hostile file."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in message)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM unwind the stack, so that staged files are removed.

    Yields:
        The signals that came: what they raise may arrive as a RuntimeError after it went
        through the callbacks of a compiler.
    """
    received: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        received.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(TERMINATED)

    before = {}
    try:
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, leave)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not told to ignore it
            before[signal.SIGINT] = signal.signal(signal.SIGINT, leave)
    except ValueError:  # not in the main thread: whoever embeds us decides
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

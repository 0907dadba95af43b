"""The options of every command that asks about a target: which machine, how wide, which lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click

from bscompile.cli.talk import dims_option, parse_dims, threads_option
from bscompile.errors import TargetError, UsageError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Plan:
    """What to compile for.

    Attributes:
        target: ``name`` or ``name:variant``.
        threads: Worker threads; None takes what the machine has.
        typical_rows: Rows to plan for where the model leaves them open.
        dimensions: Lengths for symbolic dimensions.
        dtype: What linear layers are stored and multiplied in.
        buckets: Further rows to plan for there; None for the usual ones.
    """

    target: str
    threads: int | None
    typical_rows: int
    dimensions: dict[str, int]
    dtype: str = "float32"
    buckets: tuple[int, ...] | None = None

    def options(self) -> dict[str, Any]:
        """As keyword arguments of the functions of bscompile.api."""
        return asdict(self)


DTYPES = ("float32", "tf32", "bf16", "fp16", "int8")
SPELLINGS = ("fp32", "bfloat16", "float16")  # as numpy, torch and messages of ours say it

dtype_option = click.option(
    "--dtype",
    type=click.Choice([*DTYPES, *SPELLINGS]),
    metavar=f"[{'|'.join(DTYPES)}]",
    default="float32",
    show_default=True,
    help="What the weights of linear layers are stored and multiplied in; tf32 on cuda only.",
)


def target_option(text: str) -> Callable[[F], F]:
    """Add --target; an unknown one is refused before anything heavy is imported.

    Args:
        text: What the command wants a target for.
    """
    return click.option(
        "--target",
        default="cpu",
        show_default=True,
        metavar="NAME[:VARIANT]",
        callback=lambda context, option, spec: check_target(spec),
        help=f"{text}; see bscompile targets.",
    )


def layer_rows_option(text: str) -> Callable[[F], F]:
    """Add --rows: those of x that single layers are looked at with."""
    return click.option(
        "--rows",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        metavar="M",
        help=f"{text}: batch times sequence.",
    )


def plan_options(command: F) -> F:
    """Add --target, --threads, --typical-rows, --buckets, --dim and --dtype as one ``plan``."""

    def wrapped(
        target: str,
        threads: int | None,
        typical_rows: int,
        dims: tuple[str, ...],
        dtype: str,
        buckets: str | None,
        **options: Any,
    ) -> Any:
        plan = Plan(target, threads, typical_rows, parse_dims(dims), dtype, parse_buckets(buckets))
        return command(plan=plan, **options)

    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    wrapped.__dict__.update(command.__dict__)
    rows_option = click.option(
        "--typical-rows",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        metavar="N",
        help="Rows to plan for where the model leaves them open.",
    )
    buckets_option = click.option(
        "--buckets",
        metavar="N,N...",
        help="Further rows to choose for there, 1,8,32,128,1024 by default; none for no others.",
    )
    for_target = target_option("What to compile for")
    options = (dtype_option, dims_option, buckets_option, rows_option, threads_option)
    for option in (*options, for_target):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]  # same command, other options


def parse_buckets(text: str | None) -> tuple[int, ...] | None:
    """``1,8,32`` -> the numbers; ``none`` -> no numbers; None where nothing is said.

    Raises:
        UsageError: not numbers.
    """
    if text is None:
        return None
    if text.strip() == "none":
        return ()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise UsageError(f"--buckets {text}: numbers of rows such as 1,8,32 are wanted, or none")
    return tuple(int(word) for word in words)


def check_target(spec: str) -> str:
    """Refuse an unknown target; a known one is given back.

    Raises:
        TargetError: no target has that name.
    """
    from bscompile.targets import TARGETS

    name = spec.partition(":")[0]
    if name not in TARGETS:
        raise TargetError(f"unknown target {name!r}", did_you_mean(name, TARGETS))
    return spec

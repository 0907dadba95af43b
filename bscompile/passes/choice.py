"""What a planner answers for a layer, and how it is kept with the layer's node.

The planner is a target's; these are the parts of its answer that passes need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bscompile.dialect import LinearOp, Weight
from bscompile.dialect.precision import Precision


class Way(Protocol):
    """One way to run a layer."""

    @property
    def form(self) -> str:
        """``dense``, ``block_sparse`` or ``kronecker``."""

    @property
    def block(self) -> tuple[int, int]:
        """Execution block; (1, 1) for dense."""

    @property
    def template(self) -> str:
        """Name of the kernel template."""

    @property
    def config(self) -> Mapping[str, int | str]:
        """Its configuration."""

    @property
    def seconds(self) -> float:
        """Expected time of one call."""

    @property
    def dense_seconds(self) -> float:
        """Expected time of the dense form."""

    @property
    def tuned(self) -> bool:
        """Whether the times were measured, not expected."""


class Bucket(Way, Protocol):
    """The way for some numbers of rows; ``targets.choices.BucketChoice`` is one."""

    @property
    def rows(self) -> int:
        """What it was chosen for."""

    @property
    def up_to(self) -> int | None:
        """The most rows that it serves; None for no limit."""


class Choice(Way, Protocol):
    """The whole answer; ``targets.choices.FormChoice`` is one."""

    @property
    def weight(self) -> Weight:
        """The weight in the form and block chosen."""

    @property
    def reason(self) -> str:
        """One sentence for the user."""

    @property
    def considered(self) -> tuple[tuple[str, float], ...]:
        """Every candidate as (label, seconds), fastest first."""

    @property
    def buckets(self) -> Sequence[Bucket]:
        """For symbolic rows, what runs for how many; the rest is about the typical rows."""


class Planner(Protocol):
    """Says for a layer what to run."""

    def __call__(self, op: LinearOp, rows: int | None, dtype: Precision, step: int = 1) -> Choice:
        """The choice.

        Args:
            op: The layer.
            rows: Rows of x; None when symbolic.
            dtype: What to multiply in.
            step: What symbolic rows are a multiple of.
        """


@dataclass(frozen=True, eq=False)
class Posed:
    """A layer as it would be with its features in some order.

    Attributes:
        op: The layer; its weight is of booleans, true where it is not zero.
        rows: Rows of x; None when symbolic.
        dtype: What to multiply in.
        step: What symbolic rows are a multiple of.
    """

    op: LinearOp
    rows: int | None
    dtype: Precision
    step: int


class OrderJudge(Protocol):
    """Says what layers take that were measured."""

    def __call__(self, plans: Sequence[Sequence[Posed]]) -> list[float] | None:
        """Seconds of all layers of each plan; None where one of them was not measured."""


def not_measured(plans: Sequence[Sequence[Posed]]) -> list[float] | None:
    """The judge who knows nothing."""
    return None


def choice_text(choice: Choice) -> str:
    """A choice as the metadata of its node."""
    body: dict[str, Any] = {
        **_way(choice),
        "reason": choice.reason,
        "considered": [list(candidate) for candidate in choice.considered],
        "buckets": [
            {**_way(bucket), "rows": bucket.rows, "up_to": bucket.up_to}
            for bucket in choice.buckets
        ],
    }
    return json.dumps(body)


def stored_weight(op: LinearOp, choice: Choice) -> Weight:
    """The weight from which that of every bucket can be made: factors where any runs them."""
    if any(bucket.form == "kronecker" for bucket in choice.buckets):
        return op.weight
    return choice.weight


def _way(way: Way) -> dict[str, Any]:
    return {
        "form": way.form,
        "block": list(way.block),
        "template": way.template,
        "config": dict(way.config),
        "seconds": way.seconds,
        "dense_seconds": way.dense_seconds,
        "tuned": way.tuned,
    }

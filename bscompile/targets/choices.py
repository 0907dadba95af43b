"""What a planner answers for a layer: the form, template and configuration that will run.

Passes see only ``passes.choice.Choice``; these are its values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

from bscompile.dialect import Weight
from bscompile.targets.base import Config


@dataclass(frozen=True)
class BucketChoice:
    """How a layer with symbolic rows runs for some numbers of rows.

    Attributes:
        rows: What it was chosen for.
        up_to: The most rows that it serves; None for no limit.
        form: ``dense``, ``block_sparse`` or ``kronecker``.
        block: Execution block; (1, 1) for dense.
        template: Name of the kernel template.
        config: Its configuration.
        seconds: Expected time of one call with ``rows`` rows.
        dense_seconds: Expected time of the dense form.
        tuned: Whether the times were measured, not expected.
    """

    rows: int
    up_to: int | None
    form: str
    block: tuple[int, int]
    template: str
    config: Config
    seconds: float
    dense_seconds: float
    tuned: bool = False

    @property
    def variant(self) -> tuple[Hashable, ...]:
        """Equal for buckets that run the same code."""
        return self.form, self.block, self.template, tuple(sorted(self.config.items()))


@dataclass(frozen=True, eq=False)
class FormChoice:
    """How a layer will run, and why.

    Attributes:
        form: ``dense``, ``block_sparse`` or ``kronecker``.
        block: Execution block; (1, 1) for dense.
        make: Makes the weight in that form and block.
        template: Name of the kernel template.
        config: Its configuration.
        seconds: Expected time of one call.
        dense_seconds: Expected time of the dense form on the same machine.
        reason: One sentence for the user.
        considered: Every candidate as (label, seconds), fastest first.
        tuned: Whether the times were measured, not expected.
        buckets: For symbolic rows, what runs for how many, fewest rows first; the rest of the
            choice is about the typical rows. Empty where the rows are known or one way serves all.
    """

    form: str
    block: tuple[int, int]
    make: Callable[[], Weight]
    template: str
    config: Config
    seconds: float
    dense_seconds: float
    reason: str
    considered: tuple[tuple[str, float], ...] = ()
    tuned: bool = False
    buckets: tuple[BucketChoice, ...] = ()

    @cached_property
    def weight(self) -> Weight:
        """The weight in the form and block chosen."""
        return self.make()

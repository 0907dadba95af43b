"""Who builds, checks and times candidates: the interface between search and machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bscompile.dialect import LinearOp
from bscompile.dialect.precision import Precision
from bscompile.targets.base import Problem, TargetContext, problem_of
from bscompile.tuning.keys import key_of
from bscompile.tuning.record import CRASHED, OK, TuningKey, Variant


@dataclass(frozen=True, eq=False)
class Layer:
    """One problem of a model.

    Attributes:
        op: The layer as it was recognised.
        rows: Rows of x; None when symbolic.
        dtype: What the weight is to be multiplied in.
        context: The target to run on.
        uses: Layers of the model that pose this problem.
        aside: Whether its rows are a bucket beside the typical ones.
    """

    op: LinearOp
    rows: int | None
    dtype: Precision
    context: TargetContext
    uses: int = 1
    aside: bool = False

    @cached_property
    def problem(self) -> Problem:
        """What the layer poses in the form that it is in."""
        return problem_of(self.op, self.rows, self.dtype, self.context.typical_rows)

    @cached_property
    def key(self) -> TuningKey:
        """What its records are kept under."""
        return key_of(self.op, self.rows, self.dtype, self.context)


@dataclass(frozen=True)
class Measurement:
    """What came of building and running one candidate.

    Attributes:
        status: ``ok``, ``wrong``, ``crashed`` or ``timeout``.
        seconds: Each measured time of one call; few where the candidate was soon hopeless.
        error: Largest difference to float64 over the largest value; None where nothing ran.
        detail: What went wrong.
    """

    status: str
    seconds: tuple[float, ...] = ()
    error: float | None = None
    detail: str = ""


class Measurer(ABC):
    """Measures candidates of one layer after the other; used by one thread at a time."""

    @abstractmethod
    def open(self, layer: Layer) -> None:
        """Make ready for the candidates of a layer."""

    @abstractmethod
    def measure(
        self, variants: Sequence[Variant], *, rounds: int = 5, give_up: float | None = None
    ) -> list[Measurement]:
        """Build, check and time candidates, in turns where there are several.

        Args:
            variants: Candidates of the layer that is open.
            rounds: How often each is timed.
            give_up: Seconds of a call beyond which a candidate need not be timed well.

        Returns:
            One measurement for each; candidates never raise.
        """

    @abstractmethod
    def abort(self) -> None:
        """Make a measurement that runs in another thread end soon, with any result."""

    @abstractmethod
    def close(self) -> None:
        """End whatever was started; may be called twice."""


def measure_apart(
    measurer: Measurer, variants: Sequence[Variant], rounds: int
) -> list[Measurement]:
    """Measure in turns; where that ends badly, one by one, so that only the culprit pays."""
    together = measurer.measure(variants, rounds=rounds)
    if all(measurement.status == OK for measurement in together) or len(variants) == 1:
        return together
    return [measurer.measure([variant], rounds=rounds)[0] for variant in variants]


def crashed(detail: str) -> Measurement:
    """A candidate that took its process down, or could not be built."""
    return Measurement(CRASHED, detail=detail)

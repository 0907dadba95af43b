"""How fast sparsity rises: s(t) = target (1 - (1 - t)³), fast first, gently at the end."""

from __future__ import annotations

from dataclasses import dataclass

from bscompile.errors import UsageError


@dataclass(frozen=True)
class CubicSchedule:
    """Sparsity as a function of progress through training.

    Attributes:
        target: Sparsity at the end.
        begin: Progress in [0, 1] until which nothing is pruned.
        end: Progress from which the target holds; what remains lets the weights settle.
    """

    target: float
    begin: float = 0.15
    end: float = 0.85

    def __post_init__(self) -> None:
        if not 0 <= self.target < 1:
            raise UsageError(f"sparsity must lie in [0, 1), got {self.target:g}")
        if not 0 <= self.begin < self.end <= 1:
            raise UsageError(
                f"schedule needs 0 <= begin < end <= 1, got {self.begin:g} and {self.end:g}"
            )

    def __call__(self, progress: float) -> float:
        """The sparsity wanted at ``progress`` in [0, 1]."""
        t = (progress - self.begin) / (self.end - self.begin)
        return self.target * (1 - (1 - min(max(t, 0.0), 1.0)) ** 3)

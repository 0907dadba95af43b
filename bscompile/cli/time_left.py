"""How long a command still takes, by the share of the time that each of its phases usually has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

#: Of ``build``, in percent, as seen on a model of BERT-base's size. Small models are all code.
BUILD_SHARES = {
    "reading the model": 15,
    "RecogniseLinear": 12,
    "RecoverFactors": 12,
    "ChooseForm": 7,
    "WriteDialect": 5,
    "lowering to Relax": 11,
    "generating code": 25,
    "writing the artifact": 13,
}
_LEAST_SECONDS = 2.0
_LEAST_SHARE = 0.25  # of the work: before that, one slow phase would decide about all others


class TimeLeft:
    """An estimate that each phase corrects: what is over took so long, so the rest will take ...

    Args:
        shares: Phase -> its part of the whole, in the order of the phases.
        clock: Gives seconds.
    """

    def __init__(
        self, shares: Mapping[str, float], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        total = sum(shares.values())
        self._shares = {phase: share / total for phase, share in shares.items()}
        self._order = list(shares)
        self._clock = clock
        self._current = -1
        self._begun = self._phase_begun = clock()

    def start(self, line: str) -> None:
        """A phase begins; ``pass 3/14: RecogniseLinear`` is known by its last part."""
        phase = line.rpartition(": ")[2]
        if phase not in self._shares:
            return  # too short to count
        now, place = self._clock(), self._order.index(phase)
        if place <= self._current or self._current < 0:
            self._begun = now  # another round, such as a build after tuning
        self._current, self._phase_begun = place, now

    def left(self) -> float | None:
        """Seconds, None while nobody can tell."""
        now = self._clock()
        done = sum(self._shares[phase] for phase in self._order[: max(self._current, 0)])
        if done < _LEAST_SHARE or now - self._begun < _LEAST_SECONDS:
            return None
        share = self._shares[self._order[self._current]]
        per_share = (self._phase_begun - self._begun) / done
        expected = share * per_share - (now - self._phase_begun)
        if expected < 0:  # the phase takes longer than it should, and so may those to come
            per_share = (now - self._begun) / (done + share)
        return max(expected, 0.0) + max(1 - done - share, 0.0) * per_share


def spelled(seconds: float | None) -> str:
    """For a person, without false precision: ``about 40 s left``."""
    if seconds is None:
        return ""
    if seconds < 1:
        return "nearly done"
    if seconds < 100:
        step = 1 if seconds < 10 else 5
        return f"about {step * max(1, round(seconds / step))} s left"
    return f"about {round(seconds / 60)} min left"

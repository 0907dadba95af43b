"""Fair timing on noisy machines: contestants take turns, medians and minima are reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant over all rounds."""

    median: float
    minimum: float
    rounds: int


def interleaved(
    contestants: dict[str, Callable[[], object]], rounds: int = 30, seconds: float = 10.0
) -> dict[str, Timing]:
    """Let every contestant make three calls a round and count the last two.

    The first call of a turn also pays for the other engine's worker threads, which go on
    spinning for about a millisecond, and for caches that the other one filled.

    Args:
        contestants: Name -> call.
        rounds: Rounds at most; at least five are made.
        seconds: Stop after about this long.
    """
    for _ in range(2):
        for call in contestants.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    begun = time.perf_counter()
    for done in range(rounds):
        if done >= 5 and time.perf_counter() - begun > seconds:
            break
        for name, call in contestants.items():
            call()
            for _ in range(2):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {
        name: Timing(float(np.median(values)), min(values), len(values))
        for name, values in times.items()
    }

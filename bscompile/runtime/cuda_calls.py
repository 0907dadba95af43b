"""Calls of CUDA's runtime library: errors as exceptions, times by events."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from typing import Any


def ask(library: Any, function: str, *arguments: Any) -> None:
    """Call a function that returns a cudaError_t.

    Raises:
        RuntimeError: it refuses.
    """
    if code := getattr(library, function)(*arguments):
        library.cudaGetLastError()  # reads it away: TVM would take it for its own
        raise RuntimeError(f"{function} failed with {code}")


def median_seconds(
    library: Any,
    launch: Callable[[], Any],
    repeats: int,
    stream: ctypes.c_void_p,
    before: Callable[[], Any] | None = None,
) -> float:
    """Median seconds of what ``launch`` puts on a stream, by events around it.

    Args:
        library: CUDA's runtime.
        launch: Called for each measurement.
        repeats: Measurements.
        stream: Where it launches.
        before: Called before each, outside of what is timed.

    Raises:
        RuntimeError: CUDA refuses.
    """
    events = [ctypes.c_void_p(), ctypes.c_void_p()]
    times, milliseconds = [], ctypes.c_float()
    try:
        for event in events:
            ask(library, "cudaEventCreate", ctypes.byref(event))
        for _ in range(repeats):
            if before:
                before()
            ask(library, "cudaEventRecord", events[0], stream)
            launch()
            ask(library, "cudaEventRecord", events[1], stream)
            ask(library, "cudaEventSynchronize", events[1])
            ask(library, "cudaEventElapsedTime", ctypes.byref(milliseconds), *events)
            times.append(float(milliseconds.value) * 1e-3)
    finally:
        for event in events:
            if event:
                library.cudaEventDestroy(event)
    return statistics.median(times)

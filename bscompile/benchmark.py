"""How fast is an artifact, and how fast is ONNX Runtime beside it on the same threads?

The two take turns. A turn begins with a pause, so that the other engine's idle workers have stopped
spinning and gone to sleep, and with calls that are not counted: they pay for waking one's own
workers, which takes the operating system milliseconds, and for the caches that the other one
filled. So the figures are those of back-to-back calls; a call out of the blue takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bscompile import runtime
from bscompile.artifact import REPORT
from bscompile.errors import UsageError
from bscompile.reference import Reference
from bscompile.report import Report
from bscompile.report.measured import attach_times
from bscompile.samples import integer_limits, make_inputs, typical_lengths

_PAUSE_SECONDS = 0.03  # longer than any engine's idle workers spin
_WARM_SECONDS = 0.01  # of calls that are not counted
_TURN_SECONDS = 0.03  # of calls that are, two at the least


@dataclass(frozen=True)
class Latency:
    """Seconds per call over all counted calls."""

    median: float
    minimum: float
    p10: float
    p90: float
    calls: int


@dataclass(frozen=True)
class Benchmark:
    """What ``bench`` measured.

    Attributes:
        artifact: Latency of the artifact.
        onnxruntime: Latency of ONNX Runtime, None where no model was given.
        threads: Worker threads of both.
        lengths: Symbolic dimension -> length.
        samples: Length of the first axis of the first input: what one call works off.
        stand_in: What ran it in place of the device that it is made for; empty for that device.
        remark: What else there is to say of how it ran, see Executor.
    """

    artifact: Latency
    onnxruntime: Latency | None
    threads: int
    lengths: dict[str, int]
    samples: int
    stand_in: str = ""
    remark: str = ""

    @property
    def throughput(self) -> float:
        """Samples per second of the artifact at its median latency."""
        return self.samples / self.artifact.median

    @property
    def speedup(self) -> float | None:
        """ONNX Runtime's median over the artifact's."""
        return self.onnxruntime.median / self.artifact.median if self.onnxruntime else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "throughput": self.throughput, "speedup": self.speedup}


def bench(
    artifact: str | Path,
    against: str | Path | None = None,
    *,
    seconds: float = 3.0,
    lengths: Mapping[str, int] | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Benchmark:
    """Time an artifact.

    Args:
        artifact: The .bsc file.
        against: The ONNX model, to time ONNX Runtime beside it.
        seconds: How long to measure; at least five turns are made.
        lengths: Symbolic dimension -> length; others are 1 as the first axis of an input, or 128.
        threads: Worker threads for both.
        seed: Of the random inputs.
        progress: Called with one line at the start of each phase.

    Raises:
        BscompileError: a file is broken, or the two are not the same model.
    """
    say = progress or (lambda line: None)
    if seconds <= 0:
        raise UsageError(f"seconds: a positive number is wanted, got {seconds}")
    say("loading the artifact")
    model = runtime.load(artifact, threads=threads)
    chosen = typical_lengths(model.inputs, lengths or {})
    limits: dict[str, int] = {}
    calls: dict[str, Callable[[], object]] = {}
    reference = None
    if against is not None:
        import onnx

        say("loading the model into onnxruntime")
        reference = Reference(against, model.threads)
        reference.check_contract(model.inputs, model.outputs)
        limits = integer_limits(onnx.load(str(against), load_external_data=False))
    inputs = make_inputs(model.inputs, chosen, np.random.default_rng(seed), limits)
    calls["artifact"] = lambda: model.run(inputs)
    if reference is not None:
        theirs = reference  # not None for the closure
        calls["onnxruntime"] = lambda: theirs.run(inputs)
    say("measuring")
    times = take_turns(calls, seconds)
    first = next(iter(inputs.values()), None)
    return Benchmark(
        artifact=times["artifact"],
        onnxruntime=times.get("onnxruntime"),
        threads=model.threads,
        lengths=chosen,
        samples=first.shape[0] if first is not None and first.ndim else 1,
        stand_in=model.stand_in,
        remark=model.remark,
    )


def measure_layers(
    artifact: str | Path,
    *,
    lengths: Mapping[str, int] | None = None,
    threads: int | None = None,
    repeats: int = 15,
) -> tuple[Report, list[tuple[str, float]], str]:
    """Time every kernel of an artifact.

    Returns:
        (its report with a measured time per layer, where kernels and layers could be matched;
        every kernel call as (symbol, median seconds); what else to say of how it ran, or empty).

    Raises:
        BscompileError: the file is broken.
    """
    model = runtime.load(artifact, threads=threads)
    chosen = typical_lengths(model.inputs, lengths or {})
    inputs = make_inputs(model.inputs, chosen, np.random.default_rng(0))
    calls = model.profile(inputs, repeats)
    report = Report.from_json(model.members[REPORT])
    return attach_times(report, calls) or report, calls, model.remark


def take_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Latency]:
    """Time calls against each other; see the module's head.

    Args:
        calls: Name -> call.
        seconds: Stop after about this long, and after five turns at the earliest.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    turns, begun = 0, time.perf_counter()
    while turns < 5 or time.perf_counter() - begun < seconds:
        for name, call in calls.items():
            time.sleep(_PAUSE_SECONDS)
            warm = time.perf_counter() + _WARM_SECONDS
            call()
            while time.perf_counter() < warm:
                call()
            times[name] += _timed(call)
        turns += 1
    return {name: _latency(values) for name, values in times.items()}


def _timed(call: Callable[[], object]) -> list[float]:
    """Seconds of each call of one turn."""
    found: list[float] = []
    while len(found) < 2 or sum(found) < _TURN_SECONDS:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def _latency(seconds: list[float]) -> Latency:
    low, middle, high = (float(v) for v in np.percentile(seconds, [10, 50, 90]))
    return Latency(middle, min(seconds), low, high, len(seconds))

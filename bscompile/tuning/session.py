"""Tune the layers of a model: each distinct problem once, the expensive ones first."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bscompile.errors import TargetError, UsageError
from bscompile.targets.base import TargetContext
from bscompile.tuning.child import ChildMeasurer
from bscompile.tuning.database import Best, Database
from bscompile.tuning.measurer import Layer, Measurer
from bscompile.tuning.record import TuningRecord
from bscompile.tuning.roofline import share_of_roofline
from bscompile.tuning.runner import Runner
from bscompile.tuning.search import LayerSearch, SearchOptions


@dataclass(frozen=True)
class TuneOptions:
    """How to tune a model.

    Attributes:
        trials: Candidates of each problem.
        timeout: Seconds for the whole model; None takes what the trials take.
        jobs: Candidates built at once; on one machine they are timed one after the other.
        candidate_seconds: Time limit of one candidate.
        runner: Where kernels run; None is this machine.
        seed: Of the sampler.
    """

    trials: int = 32
    timeout: float | None = None
    jobs: int = 1
    candidate_seconds: float = 15.0
    runner: Runner | None = None
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """Where the tuning stands.

    Attributes:
        layer: Name of the layer that is being tuned.
        number: Which of the problems it is, from 1.
        total: How many problems there are to tune.
        trial: Trials of this problem so far.
        trials: How many it gets at most.
        best: The fastest candidate of this problem so far.
        roofline: Share of the machine's limit that it reaches.
        seconds_left: Expected time until the end; None before the first trial.
    """

    layer: str
    number: int
    total: int
    trial: int
    trials: int
    best: TuningRecord | None
    roofline: float | None
    seconds_left: float | None


@dataclass(frozen=True, eq=False)
class LayerOutcome:
    """What came of one problem.

    Attributes:
        layer: The problem.
        best: What to run; None where it could not be tuned.
        tuned_now: Whether it was measured in this run, not known before.
    """

    layer: Layer
    best: Best | None
    tuned_now: bool


def tune_layers(
    layers: Sequence[Layer],
    database: Database,
    options: TuneOptions,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> list[LayerOutcome]:
    """Tune what the database does not know yet.

    Args:
        layers: The distinct problems of a model.
        database: Is asked first, and receives every record at once.
        options: How hard to search.
        watch: Called after every trial.

    Returns:
        One outcome for each layer, in their order.

    Raises:
        TargetError: the target's kernels cannot be timed one by one.
        UsageError: ``optuna`` is not installed.
    """
    todo = [layer for layer in layers if not _finished(database, layer)]
    if todo:
        _check(todo[0].context, options.runner)
        # Large problems first: when time runs out, what is missing matters least.
        # What is typical comes before the other buckets of symbolic rows.
        todo.sort(key=lambda layer: (layer.aside, -layer.uses * _dense_work(layer)))
        with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
            lock = Path(folder) / "turns" if options.jobs > 1 and options.runner is None else None
            measurers = [
                ChildMeasurer(options.candidate_seconds * options.jobs, options.runner, lock)
                for _ in range(options.jobs)
            ]
            try:
                _tune(todo, measurers, database, options, watch)
            finally:
                for measurer in measurers:
                    measurer.close()
    tuned_now = {layer.key.digest for layer in todo}
    return [
        LayerOutcome(layer, database.best(layer.key), layer.key.digest in tuned_now)
        for layer in layers
    ]


def _tune(
    layers: Sequence[Layer],
    measurers: Sequence[Measurer],
    database: Database,
    options: TuneOptions,
    watch: Callable[[Progress], None],
) -> None:
    begun, trials_done = time.monotonic(), 0
    run = datetime.now(UTC).isoformat()
    for number, layer in enumerate(layers, 1):
        now = time.monotonic()
        deadline = None
        if options.timeout is not None:
            left = begun + options.timeout - now
            if left <= 0:
                return
            # Twice its share: the first, large problems use it, similar ones after them do not.
            deadline = now + min(left, 2 * left / (len(layers) - number + 1))
        search = LayerSearch(
            layer,
            measurers,
            database,
            SearchOptions(options.trials, options.seed, run, partial(_past, deadline)),
        )

        def tell(
            done: int, total: int, best: TuningRecord | None, number: int = number,
            layer: Layer = layer,
        ) -> None:  # fmt: skip
            nonlocal trials_done
            trials_done += 1
            elapsed = time.monotonic() - begun
            rest = total - done + (len(layers) - number) * total
            expected = elapsed / trials_done * rest
            if options.timeout is not None:
                expected = min(expected, max(0.0, options.timeout - elapsed))
            watch(
                Progress(
                    layer.op.name, number, len(layers), done, total, best,
                    share_of_roofline(layer, best) if best else None, expected,
                )
            )  # fmt: skip

        search.run(tell)


def _past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def _finished(database: Database, layer: Layer) -> bool:
    """Whether a search of the layer came to its end."""
    return any(record.final for record in database.of(layer.key))


def _dense_work(layer: Layer) -> int:
    problem = layer.problem
    return problem.rows * problem.n * problem.k


def _check(context: TargetContext, runner: Runner | None) -> None:
    target = context.target
    if target.compile_kernel is None:
        raise TargetError(f"target {target.name} cannot time single kernels")
    if runner is not None and not target.device:
        raise TargetError(
            f"target {target.name} is not tuned behind a tracker: TVM has no runtime for it",
            "leave --rpc away, where the device is",
        )
    if target.check_kernel is not None:
        target.check_kernel(context.hardware)
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "tuning needs optuna, which is not installed", "pip install 'bscompile[tune]'"
        ) from error
    if runner is not None:
        runner.check()

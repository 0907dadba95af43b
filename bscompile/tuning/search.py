"""Search one layer: optuna proposes among what the cost model left over, a measurer decides.

The first trials are the dense form, the cost model's best of each form and block, and what won
for similar layers. The fastest few then meet the dense form again, timed in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bscompile.errors import TargetError
from bscompile.tuning.database import Best, Database, choose
from bscompile.tuning.measurer import Layer, Measurement, Measurer, measure_apart
from bscompile.tuning.record import OK, TuningRecord, Variant
from bscompile.tuning.space import Space, goal, parameters
from bscompile.tuning.variants import all_variants, worth_trying

if TYPE_CHECKING:
    import optuna

_FINALISTS = 3
_FINAL_ROUNDS = 15
_HOPELESS = 2.0  # times the best so far: not worth timing well
_FIRST_KINDS = 6  # forms and blocks whose best by cost model is tried first
_SAME_BUT_PATTERN = 0.3  # distance below which a layer needs only a few trials of its own
_DENSE_TRIES = 8
_MISSES = 40  # proposals in a row that bring nothing new

#: Called after each trial: trials so far, of how many, the best so far.
Watcher = Callable[[int, int, TuningRecord | None], None]


@dataclass(frozen=True)
class SearchOptions:
    """How hard to search.

    Attributes:
        trials: Candidates of a layer; a quarter where a layer that differs in its pattern alone
            was tuned before, half for a bucket beside the typical rows of a layer that was.
        seed: Of the sampler.
        run: Name of this tuning run, sortable by time.
        expired: Asked before each trial; True ends the search with what it has.
    """

    trials: int = 32
    seed: int = 0
    run: str = ""
    expired: Callable[[], bool] = lambda: False


class LayerSearch:
    """The search for one layer.

    Args:
        layer: What to tune.
        measurers: Who measures; as many candidates are measured at once.
        database: Receives every record as soon as it is there.
        options: How hard to search.
    """

    def __init__(
        self,
        layer: Layer,
        measurers: Sequence[Measurer],
        database: Database,
        options: SearchOptions,
    ) -> None:
        self._layer, self._measurers = layer, measurers
        self._database, self._options = database, options
        self._key = layer.key
        everything = all_variants(layer)
        self._dense = [variant for variant in everything if variant.form == "dense"]
        self._space = Space(worth_trying(everything))
        if not len(self._space):
            raise TargetError(f"{layer.op.name}: target {self._key.target} has no kernel for it")
        self._neighbours = database.nearest(self._key)
        self._records: dict[Variant, TuningRecord] = {}

    @property
    def trials(self) -> int:
        """How many candidates will be measured at most."""
        near = any(distance < _SAME_BUT_PATTERN for distance, _ in self._neighbours)
        share = 4 if near else 2 if self._layer.aside and self._neighbours else 1
        wanted = self._options.trials // share
        return min(max(2, wanted), len(self._space))

    @property
    def best(self) -> TuningRecord | None:
        """The fastest candidate so far."""
        right = (record for record in self._records.values() if record.status == OK)
        return min(right, key=lambda record: record.time, default=None)

    def run(self, watch: Watcher = lambda done, total, best: None) -> Best | None:
        """Search; what was found is in the database even where this is interrupted.

        Returns:
            What to run, or None where no candidate is right.
        """
        for measurer in self._measurers:
            measurer.open(self._layer)
        study = _new_study(self._options.seed)
        self._resume(study)
        for variant in self._first_tries():
            study.enqueue_trial(parameters(variant))
        with ThreadPoolExecutor(len(self._measurers)) as pool:
            while (left := self.trials - len(self._records)) > 0 and not self._may_stop():
                batch = self._propose(study, min(len(self._measurers), left))
                measured = self._measure(pool, [variant for _, variant in batch])
                for (trial, variant), measurement in zip(batch, measured, strict=True):
                    record = self._keep(variant, measurement)
                    self._records[variant] = record
                    _tell(study, trial, record)
                    watch(len(self._records), self.trials, self.best)
        self._compare_finalists()
        return choose(self._database.of(self._key))

    def _may_stop(self) -> bool:
        """Whether time is up; a search that began compares two at least, or dense would win."""
        return self._options.expired() and self._space.variants[0] in self._records

    def _measure(self, pool: ThreadPoolExecutor, variants: list[Variant]) -> list[Measurement]:
        """Measure candidates at once, one on each measurer; Ctrl-C ends all of them."""
        limit = _HOPELESS * self.best.time if self.best else None
        futures = [
            pool.submit(measurer.measure, [variant], give_up=limit)
            for measurer, variant in zip(self._measurers, variants, strict=False)
        ]
        try:
            return [future.result()[0] for future in futures]
        except BaseException:
            for measurer in self._measurers:
                measurer.abort()
            raise

    def _resume(self, study: optuna.Study) -> None:
        """Take up a search that was stopped: its trials count."""
        for record in self._database.of(self._key):
            variant = self._space.find(record.variant)
            if variant is not None and variant not in self._records and not record.final:
                self._records[variant] = record
                study.add_trial(self._space.seen(record))

    def _first_tries(self) -> list[Variant]:
        variants = self._space.variants
        kinds: dict[str, Variant] = {}
        for variant in variants:
            kinds.setdefault(variant.label, variant)
        known = (self._space.find(best.winner.variant) for _, best in self._neighbours)
        wanted = [
            *self._dense[:1],
            *variants[:1],
            *(variant for variant in known if variant is not None),
            *list(kinds.values())[:_FIRST_KINDS],
        ]
        return [variant for variant in dict.fromkeys(wanted) if variant not in self._records]

    def _propose(self, study: optuna.Study, count: int) -> list[tuple[optuna.trial.Trial, Variant]]:
        """At most ``count`` new candidates, and at least one."""
        from optuna.trial import TrialState

        batch: list[tuple[optuna.trial.Trial, Variant]] = []
        misses = 0
        while len(batch) < count:
            if misses == _MISSES:  # the sampler goes round in circles: ask the cost model
                taken = {variant for _, variant in batch} | set(self._records)
                spare = next(v for v in self._space.variants if v not in taken)
                study.enqueue_trial(parameters(spare))
            trial = study.ask()
            variant = self._space.suggest(trial)
            if variant is None or variant in self._records or variant in [v for _, v in batch]:
                study.tell(trial, state=TrialState.PRUNED)
                misses += 1
            else:
                batch.append((trial, variant))
                misses = 0
        return batch

    def _keep(
        self, variant: Variant, measurement: Measurement, *, final: bool = False
    ) -> TuningRecord:
        record = TuningRecord(
            key=self._key,
            variant=variant,
            status=measurement.status,
            seconds=measurement.seconds,
            error=measurement.error,
            detail=measurement.detail,
            final=final,
            run=self._options.run,
        )
        self._database.add([record])
        return record

    def _find_dense(self) -> None:
        """Nothing may win without a dense form to beat: try others where the first one failed."""
        for variant in self._dense[:_DENSE_TRIES]:
            if any(r.variant.form == "dense" and r.status == OK for r in self._records.values()):
                return
            if variant not in self._records:
                (measurement,) = self._measurers[0].measure([variant])
                self._records[variant] = self._keep(variant, measurement)

    def _compare_finalists(self) -> None:
        """Time the fastest few and the dense form in turns: noise then hits all of them alike."""
        self._find_dense()
        right = [record for record in self._records.values() if record.status == OK]
        right.sort(key=lambda record: record.time)
        dense = [record for record in right if record.variant.form == "dense"]
        if not dense:
            return  # nothing may be chosen that did not meet the dense form
        favourite = [r for r in right if r.variant == self._space.variants[0]]  # for comparison
        chosen = [*right[:_FINALISTS], dense[0], *favourite]
        finalists = list(dict.fromkeys(record.variant for record in chosen))
        measured = measure_apart(self._measurers[0], finalists, _FINAL_ROUNDS)
        for variant, measurement in zip(finalists, measured, strict=True):
            self._keep(variant, measurement, final=True)


def _new_study(seed: int) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)
    return optuna.create_study(sampler=sampler, direction="minimize")


def _tell(study: optuna.Study, trial: optuna.trial.Trial, record: TuningRecord) -> None:
    from optuna.trial import TrialState

    if record.status == OK:
        study.tell(trial, goal(record))
    else:
        study.tell(trial, state=TrialState.FAIL)

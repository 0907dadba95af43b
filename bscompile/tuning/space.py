"""The candidates of a layer as optuna sees them: one choice of kind, then the template's axes.

``kind`` is form, execution block and template; ``<template>.<key>`` are the values that a
configuration key takes. Axes belong to the template, not to the block, so that what is learnt
about row tiles on one block helps on the next. Not every combination is a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bscompile.tuning.record import OK, TuningRecord, Variant

if TYPE_CHECKING:
    import optuna

Value = int | str
_KIND = "kind"


class Space:
    """A finite set of candidates with axes.

    Args:
        variants: The candidates, the fastest by cost model first.
    """

    def __init__(self, variants: Iterable[Variant]) -> None:
        self.variants = list(variants)
        self._by_parameters = {_frozen(parameters(v)): v for v in self.variants}
        self._known = {v.identity: v for v in self.variants}
        axes: dict[str, dict[Value, None]] = {}
        for variant in self.variants:
            for name, value in parameters(variant).items():
                axes.setdefault(name, {})[value] = None
        self._axes = {name: tuple(values) for name, values in axes.items()}

    def __len__(self) -> int:
        return len(self.variants)

    def find(self, variant: Variant) -> Variant | None:
        """The candidate equal to one from elsewhere."""
        return self._known.get(variant.identity)

    def suggest(self, trial: optuna.trial.Trial) -> Variant | None:
        """What the sampler proposes; None where that is no candidate."""
        kind = str(trial.suggest_categorical(_KIND, self._axes[_KIND]))
        chosen: dict[str, Value] = {_KIND: kind}
        template = kind.rpartition("/")[2]
        for name, values in self._axes.items():
            if name.startswith(f"{template}."):
                value = trial.suggest_categorical(name, values)
                assert isinstance(value, int | str)  # one of the values handed over
                chosen[name] = value
        return self._by_parameters.get(_frozen(chosen))

    def seen(self, record: TuningRecord) -> optuna.trial.FrozenTrial:
        """A known record as a finished trial."""
        import optuna
        from optuna.trial import TrialState

        chosen = parameters(record.variant)
        return optuna.trial.create_trial(
            state=TrialState.COMPLETE if record.status == OK else TrialState.FAIL,
            value=goal(record) if record.status == OK else None,
            params=chosen,
            distributions={
                name: optuna.distributions.CategoricalDistribution(self._axes[name])
                for name in chosen
            },
        )


def parameters(variant: Variant) -> dict[str, Value]:
    """A candidate in optuna's words."""
    kind = f"{variant.label}/{variant.template}"
    axes = {f"{variant.template}.{key}": value for key, value in variant.config.items()}
    return {_KIND: kind, **axes}


def goal(record: TuningRecord) -> float:
    """What optuna minimises: the logarithm, since times compare by their ratio."""
    return math.log(record.time)


def _frozen(chosen: dict[str, Value]) -> frozenset[tuple[str, Value]]:
    return frozenset(chosen.items())

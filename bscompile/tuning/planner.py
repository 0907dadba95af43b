"""What a build takes from a tuning database; what it does not know is planned by cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from bscompile.dialect import LinearOp
from bscompile.targets.base import FormChoice, TargetContext, problem_of
from bscompile.targets.planner import plan
from bscompile.tuning.database import Best, Database
from bscompile.tuning.forms import in_form
from bscompile.tuning.keys import key_of
from bscompile.tuning.record import OK, TuningKey, TuningRecord


class TunedPlanner:
    """Plans layers from a database; hand it to the passes in place of the cost model.

    Args:
        database: What was measured.
        context: The target to plan for.

    Attributes:
        used: Keys of the layers that were planned from the database.
    """

    def __init__(self, database: Database, context: TargetContext) -> None:
        self._database, self._context = database, context
        self.used: list[TuningKey] = []

    def __call__(self, op: LinearOp, rows: int | None, dtype: np.dtype[Any]) -> FormChoice:
        """The measured choice, or the cost model's where the layer was never tuned here."""
        key = key_of(op, rows, dtype, self._context)
        best = self._database.best(key)
        if best is None:
            return plan(op, rows, dtype, self._context)
        choice = self._choice(op, rows, dtype, best)
        if choice is None:
            return plan(op, rows, dtype, self._context)
        self.used.append(key)
        return choice

    def _choice(
        self, op: LinearOp, rows: int | None, dtype: np.dtype[Any], best: Best
    ) -> FormChoice | None:
        """None where the record names what this target would never offer.

        A database is a file that others may have written: a configuration is taken from it only
        where the template itself proposes it.
        """
        variant = best.winner.variant
        try:
            weight = in_form(op.weight, variant.form, variant.block)
        except ValueError:
            return None
        problem = problem_of(op.with_weight(weight), rows, dtype, self._context.typical_rows)
        hardware = self._context.hardware
        for template in self._context.target.templates:
            if template.name == variant.template:
                offered = (dict(config) for config in template.space(problem, hardware))
                if dict(variant.config) not in offered:
                    return None
                return FormChoice(
                    weight=weight,
                    template=variant.template,
                    config=dict(variant.config),
                    seconds=best.winner.time,
                    dense_seconds=best.dense.time,
                    reason=_reason(best),
                    considered=_considered(best),
                    tuned=True,
                )
        return None


def _considered(best: Best) -> tuple[tuple[str, float], ...]:
    """Each form and block with its fastest time."""
    fastest: dict[str, TuningRecord] = {}
    for record in sorted(best.records, key=lambda record: record.time):
        if record.status == OK:
            fastest.setdefault(record.variant.label, record)
    return tuple((label, record.time) for label, record in fastest.items())


def _reason(best: Best) -> str:
    """One sentence for the user."""
    winner, count = best.winner, len({record.variant for record in best.records})
    if winner.variant.form == "dense":
        return f"stays dense: the fastest of {count} candidates measured"
    gain = best.dense.time / winner.time
    return (
        f"runs {winner.variant.label.replace('_', '-')}: measured {gain:.2f} times as fast as "
        f"dense, the best of {count} candidates"
    )

"""What a build takes from a tuning database; what it does not know is planned by cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from bscompile.dialect import LinearOp
from bscompile.dialect.forms import in_form
from bscompile.dialect.precision import Precision
from bscompile.passes.choice import Posed
from bscompile.targets.base import TargetContext, problem_of
from bscompile.targets.buckets import Admits, plan_buckets
from bscompile.targets.choices import FormChoice
from bscompile.targets.planner import candidates, plan_rows
from bscompile.tuning.database import Best, Database
from bscompile.tuning.keys import key_of
from bscompile.tuning.orders import measured
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

    def __call__(
        self, op: LinearOp, rows: int | None, dtype: Precision, step: int = 1
    ) -> FormChoice:
        """The measured choice, or the cost model's where the layer was never tuned here."""
        choice = plan_buckets(op, rows, dtype, self._context, step, self._plan_rows)
        if not choice.buckets:
            return choice
        return replace(choice, tuned=all(bucket.tuned for bucket in choice.buckets))

    def judge(self, plans: Sequence[Sequence[Posed]]) -> list[float] | None:
        """What the layers of other orders of features take, where all were measured."""
        known = measured(plans, self._context, self._database)
        if known is None:
            return None
        times, keys = known
        self.used += keys
        return times

    def _plan_rows(
        self,
        op: LinearOp,
        m: int | None,
        dtype: Precision,
        context: TargetContext,
        admits: Admits | None = None,
    ) -> FormChoice | None:
        key = key_of(op, m, dtype, context)
        best = self._database.best(key)
        if best is None:
            return plan_rows(op, m, dtype, context, admits)
        records = [best.winner] if admits is None else best.right
        for record in records:
            choice = self._choice(op, m, dtype, context, best, record, admits)
            if choice is not None:
                self.used.append(key)
                return choice
        return plan_rows(op, m, dtype, context) if admits is None else None

    def _choice(
        self,
        op: LinearOp,
        m: int | None,
        dtype: Precision,
        context: TargetContext,
        best: Best,
        record: TuningRecord,
        admits: Admits | None,
    ) -> FormChoice | None:
        """None where the record names what this target would never offer, or lies not within.

        A database is a file that others may have written: a configuration is taken from it only
        where the template itself proposes it.
        """
        variant = record.variant
        problem = problem_of(op, m, dtype, context.typical_rows)
        kinds = {(c.problem.form, c.problem.block): c for c in candidates(op, problem)}
        candidate = kinds.get((variant.form, variant.block))
        template = next((t for t in context.target.templates if t.name == variant.template), None)
        if candidate is None or template is None:
            return None
        if admits is not None and not admits(candidate.problem, template, variant.config):
            return None
        offered = template.space(candidate.problem, context.hardware)
        if dict(variant.config) not in (dict(config) for config in offered):
            return None
        return FormChoice(
            form=variant.form,
            block=variant.block,
            make=partial(in_form, op.weight, variant.form, variant.block),
            template=variant.template,
            config=dict(variant.config),
            seconds=record.time,
            dense_seconds=best.dense.time,
            reason=_reason(best),
            considered=_considered(best),
            tuned=True,
        )


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

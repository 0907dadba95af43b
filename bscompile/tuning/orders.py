"""Orders of hidden features by measurement: what PermuteFeatures asks, see passes/order_plans.py.

A plan takes as long as the layers around its features, each in the form and configuration that is
its best. Only plans whose layers were all measured are compared; symbolic rows count at the
typical number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bscompile.passes.choice import Posed
from bscompile.targets.base import TargetContext
from bscompile.targets.buckets import typical_rows
from bscompile.tuning.database import Database
from bscompile.tuning.measurer import Layer
from bscompile.tuning.record import TuningKey


def layer_of(posed: Posed, context: TargetContext) -> Layer:
    """The problem that a layer of a plan poses at the typical rows."""
    here = context
    if posed.rows is None:
        here = replace(context, typical_rows=typical_rows(context, posed.step))
    return Layer(posed.op, posed.rows, posed.dtype, here, uses=0)


def measured(
    plans: Sequence[Sequence[Posed]], context: TargetContext, database: Database
) -> tuple[list[float], list[TuningKey]] | None:
    """(seconds of each plan, the keys of all layers); None where a layer was not measured."""
    keys = [[layer_of(posed, context).key for posed in plan] for plan in plans]
    bests = [[database.best(key) for key in plan] for plan in keys]
    times = [sum(best.winner.time for best in plan if best is not None) for plan in bests]
    if any(best is None for plan in bests for best in plan):
        return None
    return times, [key for plan in keys for key in plan]

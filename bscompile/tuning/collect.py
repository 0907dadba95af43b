"""The distinct problems of a model: a planner that remembers what it is asked.

Where hidden features could take another order, the layers of every plan are problems, too, as
long as the database does not know them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bscompile.dialect import LinearOp
from bscompile.dialect.precision import Precision
from bscompile.passes.choice import Posed
from bscompile.targets.base import TargetContext
from bscompile.targets.buckets import bucket_rows, typical_rows
from bscompile.targets.choices import FormChoice
from bscompile.targets.planner import plan
from bscompile.tuning.database import Database
from bscompile.tuning.measurer import Layer
from bscompile.tuning.orders import layer_of, measured


class Collector:
    """Remembers the problems of a model and answers by cost model.

    Args:
        context: The target.
        database: What was measured of other orders of features.

    Attributes:
        undecided: How often another order could not be judged yet.
    """

    def __init__(self, context: TargetContext, database: Database | None = None) -> None:
        self._context = context
        self._database = Database() if database is None else database
        self._layers: dict[str, Layer] = {}
        self.undecided = 0

    def __call__(
        self, op: LinearOp, rows: int | None, dtype: Precision, step: int = 1
    ) -> FormChoice:
        """Remember the layer, once for each bucket of symbolic rows; plan it by cost."""
        counts = (rows,) if rows is not None else bucket_rows(self._context, step)
        for count in counts:
            here = replace(self._context, typical_rows=count) if rows is None else self._context
            aside = rows is None and count != typical_rows(self._context, step)
            layer = Layer(op, rows, dtype, here, aside=aside)
            digest = layer.key.digest
            known = self._layers.get(digest)
            self._layers[digest] = replace(known, uses=known.uses + 1) if known else layer
        return plan(op, rows, dtype, self._context, step)

    @property
    def layers(self) -> list[Layer]:
        """Each distinct problem once."""
        return list(self._layers.values())

    def judge(self, plans: Sequence[Sequence[Posed]]) -> list[float] | None:
        """Answer from the database, or remember the layers of every plan."""
        known = measured(plans, self._context, self._database)
        if known is not None:
            return known[0]
        self.undecided += 1
        for posed in (posed for layers in plans for posed in layers):
            layer = layer_of(posed, self._context)
            self._layers.setdefault(layer.key.digest, layer)
        return None

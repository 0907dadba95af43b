"""Which orders of tied groups are worth comparing, and which of them is taken.

The price of the layers around prunes: a plan is looked at where each of its orders is expected to
help, and none is far behind the best. Who has measured the layers of every plan decides by that;
where nobody has, the price does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bscompile.passes.choice import OrderJudge
from bscompile.passes.order_search import Layers, OrderGroup

Index = npt.NDArray[np.int64]

_WORTH = 0.97  # of the price before, at most, for an order to be taken
_WORTH_MEASURED = 0.98  # the same where both were measured
_IDLE = 1.005  # an order whose absence costs less than that is not needed
_CLOSE = 1.25  # times the best price: plans up to there are worth measuring


@dataclass(frozen=True, eq=False)
class OrderPlan:
    """Orders of some groups, by their number.

    Attributes:
        name: For people.
        orders: Group -> order; none leaves the features as they are.
        price: Expected seconds of the sparse layers around all groups.
    """

    name: str
    orders: dict[int, Index]
    price: float


@dataclass(frozen=True, eq=False)
class Decision:
    """What is done with some groups.

    Attributes:
        plan: What is taken; its orders are empty where nothing changes.
        reason: One clause for the user.
        measured: Whether it was decided by measured times.
    """

    plan: OrderPlan
    reason: str
    measured: bool


def decide(layers: Layers, groups: list[OrderGroup], judge: OrderJudge) -> Decision | None:
    """Compare what is worth comparing; None where that is nothing."""
    plans = order_plans(layers, groups)
    if len(plans) == 1:
        return None
    times = judge([layers.posed(groups, plan.orders) for plan in plans])
    measured, worth = times is not None, _WORTH if times is None else _WORTH_MEASURED
    times = times or [plan.price for plan in plans]
    best = min(range(len(plans)), key=times.__getitem__)
    gain = f"{'measured' if measured else 'expected'} {times[0] / times[best]:.2f} times as fast"
    if measured:
        each = zip(plans, times, strict=True)
        gain += f" ({', '.join(f'{plan.name} {time * 1e6:.1f} us' for plan, time in each)})"
    taken = plans[best if times[best] <= worth * times[0] else 0]
    return Decision(taken, gain, measured)


def order_plans(layers: Layers, groups: list[OrderGroup]) -> list[OrderPlan]:
    """The order that there is, and those of all groups in one manner that are worth comparing."""
    plans = [OrderPlan("as it was", {}, layers.total(groups, {}))]
    for name in dict.fromkeys(name for group in groups for name in group.proposals):
        orders = {
            number: group.proposals.get(name, next(reversed(group.proposals.values())))
            for number, group in enumerate(groups)
            if group.proposals
        }
        plan = _without_idle(layers, groups, OrderPlan(name, orders, layers.total(groups, orders)))
        if plan.orders and not any(_same(plan, other) for other in plans):
            plans.append(plan)
    limit = _CLOSE * min(plan.price for plan in plans)
    return [plan for plan in plans if not plan.orders or plan.price <= limit]


def _without_idle(layers: Layers, groups: list[OrderGroup], plan: OrderPlan) -> OrderPlan:
    """The plan with fewer orders: what does not help stays as it was."""
    for number in list(plan.orders):
        fewer = {n: order for n, order in plan.orders.items() if n != number}
        price = layers.total(groups, fewer)
        if price <= _IDLE * plan.price:
            plan = OrderPlan(plan.name, fewer, min(price, plan.price))
    return plan


def _same(one: OrderPlan, other: OrderPlan) -> bool:
    return one.orders.keys() == other.orders.keys() and all(
        np.array_equal(order, other.orders[number]) for number, order in one.orders.items()
    )

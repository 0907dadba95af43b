"""Symbolic rows: a choice for each of several numbers of rows, sharing what they can.

A call is served by the choice whose rows are nearest by ratio. What runs for the typical rows is
chosen first and freely. The others run the same code unless their own is faster by more than a
twentieth, and read the same packed weight unless another, which would be stored as well, is
faster by more than a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Protocol

import numpy as np

from bscompile.dialect import LinearOp
from bscompile.dialect.precision import Precision
from bscompile.errors import UsageError
from bscompile.formats import KroneckerSum
from bscompile.targets.base import (
    Config,
    KernelTemplate,
    Problem,
    TargetContext,
    problem_of,
)
from bscompile.targets.choices import BucketChoice, FormChoice

#: Rows that a model with symbolic rows is planned for, beside the typical ones.
BUCKETS = (1, 8, 32, 128, 1024)

_MOST = 12
_WORTH_CODE = 1.05  # times as fast as with code that is there already
_WORTH_STORING = 1.1  # times as fast as with the weights that are packed already

Kind = tuple[Hashable, ...]


def bucket_list(rows: Iterable[int] | None) -> tuple[int, ...]:
    """Numbers of rows as a user gives them; None stands for the usual ones.

    Raises:
        UsageError: a number is not positive, or there are more than a kernel should branch over.
    """
    if rows is None:
        return BUCKETS
    buckets = tuple(sorted(set(rows)))
    if any(count < 1 for count in buckets) or len(buckets) > _MOST:
        raise UsageError(
            f"buckets: at most {_MOST} positive numbers of rows are wanted, got {list(buckets)}"
        )
    return buckets


#: (problem in the candidate's form and block, template, configuration) -> whether it may run.
Admits = Callable[[Problem, KernelTemplate, Config], bool]


class RowsPlanner(Protocol):
    """Plans a layer for the typical rows of a context."""

    def __call__(
        self,
        op: LinearOp,
        m: int | None,
        dtype: Precision,
        context: TargetContext,
        admits: Admits | None = None,
    ) -> FormChoice | None:
        """The fastest choice of those admitted; None where there is none."""


def bucket_rows(context: TargetContext, step: int = 1) -> tuple[int, ...]:
    """The rows to plan for where they are symbolic, the typical ones among them, rising.

    Args:
        context: The target; one that cannot branch gets the typical rows only.
        step: What every number of rows is a multiple of.
    """
    wanted = {typical_rows(context, step)}
    if context.target.branches:
        wanted |= {max(rows, step) for rows in context.buckets}
    return tuple(sorted(wanted))


def typical_rows(context: TargetContext, step: int) -> int:
    """The typical rows, or the fewest that there are."""
    return max(context.typical_rows, step)


def plan_buckets(
    op: LinearOp,
    m: int | None,
    dtype: Precision,
    context: TargetContext,
    step: int,
    plan: RowsPlanner,
) -> FormChoice:
    """Plan a layer for its rows, or for each bucket where they are symbolic.

    Args:
        op: The layer.
        m: Rows of x; None when symbolic.
        dtype: What the weight is to be multiplied in.
        context: The target to run on.
        step: What symbolic rows are a multiple of.
        plan: Plans for one number of rows.
    """
    main = plan(op, m, dtype, context)
    assert main is not None  # only what is restricted may find nothing
    if m is not None or not context.target.branches or not context.buckets:
        return main
    typical = typical_rows(context, step)
    rows = bucket_rows(context, step)
    if typical != context.typical_rows:
        main = plan(op, m, dtype, replace(context, typical_rows=typical)) or main
    choices = {typical: main}
    for count in sorted(rows, key=lambda count: max(count / typical, typical / count)):
        if count == typical:
            continue
        here = replace(context, typical_rows=count)
        free = plan(op, m, dtype, here)
        assert free is not None
        known = list(choices.values())
        same_code = plan(op, m, dtype, here, partial(_is_one_of, {_variant(c) for c in known}))
        same_weight = plan(
            op,
            m,
            dtype,
            here,
            partial(_reads_one_of, {_packing(c, op, dtype, here) for c in known}),
        )
        if same_code is not None and same_code.seconds <= _WORTH_CODE * free.seconds:
            free = same_code
        elif not _goes_with(op, free, main, dtype):
            free = same_weight or main
        elif same_weight is not None and same_weight.seconds <= _WORTH_STORING * free.seconds:
            free = same_weight
        choices[count] = free
    return replace(main, buckets=_with_limits([(count, choices[count]) for count in rows]))


def _variant(choice: FormChoice) -> Kind:
    """Equal for choices that run the same code."""
    config = tuple(sorted(choice.config.items()))
    return choice.form, choice.block, choice.template, config


def _packing(choice: FormChoice, op: LinearOp, dtype: Precision, context: TargetContext) -> Kind:
    """Equal for choices of a layer that read the same packed weight."""
    problem = problem_of(op, None, dtype, context.typical_rows)
    problem = replace(problem, form=choice.form, block=choice.block)
    template = context.target.template(choice.template)
    return choice.form, choice.block, *template.packing(problem, choice.config)


def _is_one_of(
    variants: set[Kind], problem: Problem, template: KernelTemplate, config: Config
) -> bool:
    variant = problem.form, problem.block, template.name, tuple(sorted(config.items()))
    return variant in variants


def _reads_one_of(
    packings: set[Kind], problem: Problem, template: KernelTemplate, config: Config
) -> bool:
    return (problem.form, problem.block, *template.packing(problem, config)) in packings


def _goes_with(op: LinearOp, free: FormChoice, main: FormChoice, dtype: Precision) -> bool:
    """Whether both weights can be made of one: rounded factors do not give the rounded product."""
    if not isinstance(op.weight, KroneckerSum) or dtype == np.float32:
        return True
    return (free.form == "kronecker") == (main.form == "kronecker")


def _with_limits(choices: list[tuple[int, FormChoice]]) -> tuple[BucketChoice, ...]:
    """Each number of rows with the most that it serves."""
    return tuple(
        BucketChoice(
            rows=rows,
            up_to=isqrt(rows * choices[place + 1][0]) if place + 1 < len(choices) else None,
            form=choice.form,
            block=choice.block,
            template=choice.template,
            config=choice.config,
            seconds=choice.seconds,
            dense_seconds=choice.dense_seconds,
            tuned=choice.tuned,
        )
        for place, (rows, choice) in enumerate(choices)
    )

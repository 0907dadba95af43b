"""Which form of a weight to run: every form it has, every template, the cheapest by cost model.

Candidates are counted, not built: only the chosen one's values are ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import gcd

import numpy as np
import numpy.typing as npt

from bscompile.dialect import LinearOp, Weight, dense_weight
from bscompile.dialect.precision import PRECISIONS, Precision, form_precision
from bscompile.errors import TargetError
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets.base import (
    Config,
    KernelTemplate,
    Problem,
    TargetContext,
    problem_of,
)
from bscompile.targets.buckets import Admits, plan_buckets
from bscompile.targets.choices import FormChoice

_SIDES = (4, 8, 16, 32)  # of the execution blocks tried beside the trained one
_MARGIN = 0.95  # a sparse form must be expected to save this much to replace dense


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to run the layer.

    Attributes:
        label: For people, such as ``block-sparse 16x16``.
        problem: What it poses to the templates.
        build: Makes the weight.
    """

    label: str
    problem: Problem
    build: Callable[[], Weight]


@dataclass(frozen=True, eq=False)
class _Priced:
    candidate: Candidate
    template: str
    config: Config
    seconds: float


def plan(
    op: LinearOp, m: int | None, dtype: Precision, context: TargetContext, step: int = 1
) -> FormChoice:
    """The form, template and configuration that should run a layer fastest.

    Args:
        op: The layer.
        m: Rows of x; None when symbolic, then each bucket of the context gets its own.
        dtype: What the weight is to be multiplied in.
        context: The target to run on.
        step: What symbolic rows are a multiple of.

    Raises:
        TargetError: the target has no kernel for the dtype.
    """
    return plan_buckets(op, m, dtype, context, step, plan_rows)


def plan_rows(
    op: LinearOp,
    m: int | None,
    dtype: Precision,
    context: TargetContext,
    admits: Admits | None = None,
) -> FormChoice | None:
    """``plan`` for the typical rows of a context alone.

    Args:
        op: The layer.
        m: Rows of x; None when symbolic.
        dtype: What the weight is to be multiplied in.
        context: The target to run on.
        admits: What may be chosen; None for everything. With it the answer may be None.

    Raises:
        TargetError: the target has no kernel for the dtype.
    """
    problem = problem_of(op, m, dtype, context.typical_rows)
    templates = templates_for(op, problem, context)
    dense = _price(_dense(op, problem), templates, context)
    if dense is None:
        raise _lacking(op, problem, context)
    entries = (_price(c, templates, context, admits) for c in candidates(op, problem))
    priced = sorted(
        (entry for entry in entries if entry is not None), key=lambda entry: entry.seconds
    )
    if not priced:
        return None
    own = next((e for e in priced if e.candidate.problem.form == "dense"), None)
    kept_dense = own is not None and priced[0].seconds > _MARGIN * own.seconds
    chosen = own if own is not None and kept_dense else priced[0]
    candidate = chosen.candidate
    return FormChoice(
        form=candidate.problem.form,
        block=candidate.problem.block,
        make=(lambda: op.weight) if candidate.problem == problem else candidate.build,
        template=chosen.template,
        config=chosen.config,
        seconds=chosen.seconds,
        dense_seconds=dense.seconds,
        reason=_reason(op, problem, chosen, priced, dense, context) if admits is None else "",
        considered=tuple((entry.candidate.label, entry.seconds) for entry in priced),
    )


def candidates(op: LinearOp, problem: Problem) -> Iterator[Candidate]:
    """Every form and execution block that the layer can run in, the dense one first.

    Args:
        op: The layer.
        problem: What it poses in the form that it is in.
    """
    yield _dense(op, problem)
    yield from _sparse_candidates(op, problem)


def templates_for(
    op: LinearOp, problem: Problem, context: TargetContext
) -> tuple[KernelTemplate, ...]:
    """The target's templates that should run a layer.

    A convolution's windows take longer to write out than most sparse kernels to read, so where
    some template reads images itself, no other is considered.

    Args:
        op: The layer.
        problem: What it poses.
        context: The target.
    """
    templates = context.target.templates
    if op.conv is None or op.conv.is_pointwise:
        return templates
    direct = tuple(template for template in templates if template.reads_images)
    dense = _dense(op, problem).problem
    serves = any(template.space(dense, context.hardware) for template in direct)
    return direct if serves else templates


def _price(
    candidate: Candidate,
    templates: tuple[KernelTemplate, ...],
    context: TargetContext,
    admits: Admits | None = None,
) -> _Priced | None:
    """The candidate's best template and configuration; None when no template takes it."""
    problem = candidate.problem
    best: _Priced | None = None
    for template in templates:
        for config in template.space(problem, context.hardware):
            if admits is None or admits(problem, template, config):
                cost = template.cost(problem, config, context.hardware)
                if best is None or cost < best.seconds:
                    best = _Priced(candidate, template.name, config, cost)
                break  # a space begins with its cheapest
    return best


def _lacking(op: LinearOp, problem: Problem, context: TargetContext) -> TargetError:
    """No template takes a problem: say whether for its open rows, or which dtypes are taken."""
    named = ":".join(filter(None, (context.target.name, context.variant)))
    if problem.m is None:
        fixed = replace(problem, m=context.typical_rows)
        if _price(_dense(op, fixed), templates_for(op, fixed, context), context):
            return TargetError(
                f"{op.name}: target {named} needs fixed shapes, and its rows are symbolic",
                "give the length by its name, such as --dim batch=1",
            )
    taken = [
        precision
        for precision in PRECISIONS
        if _price(
            _dense(op, problem_of(op, problem.m, PRECISIONS[precision])),
            templates_for(op, problem, context),
            context,
        )
    ]
    return TargetError(
        f"{op.name}: target {named} has no kernel for {problem.dtype}",
        f"build with --dtype {' or '.join(taken)}",
    )


def _dense(op: LinearOp, problem: Problem) -> Candidate:
    n, k = op.shape
    dense = replace(problem, form="dense", block=(1, 1), nnzb=n * k, rank=0)
    return Candidate("dense", dense, lambda: dense_weight(op.weight))


def _sparse_candidates(op: LinearOp, problem: Problem) -> Iterator[Candidate]:
    weight = op.weight
    if isinstance(weight, np.ndarray):
        return
    rank = 0
    if isinstance(weight, KroneckerSum):
        rank = weight.rank
        label = f"factorized {_size(weight.block)} rank {rank}"
        yield Candidate(label, _factors(problem), lambda: weight)
    merged = replace(problem, form="block_sparse", rank=0)
    yield Candidate(f"block-sparse {_size(merged.block)}", merged, lambda: _block_sparse(weight))
    live = _live_blocks(weight)
    for block in _other_blocks(merged.block, op.shape):
        count = count_blocks(live, merged.block, block)
        other = replace(merged, block=block, nnzb=count)
        yield Candidate(
            f"block-sparse {_size(block)}",
            other,
            lambda block=block: _block_sparse(weight).reblock(block),  # type: ignore[misc]
        )


def _factors(problem: Problem) -> Problem:
    """A factorized layer's problem in what its factors are multiplied in."""
    dtype = form_precision(problem.form, PRECISIONS[problem.dtype]).name
    return problem if dtype == problem.dtype else replace(problem, dtype=dtype, activation="")


def _block_sparse(weight: BlockSparseMatrix | KroneckerSum) -> BlockSparseMatrix:
    return weight.to_block_sparse() if isinstance(weight, KroneckerSum) else weight


def _live_blocks(weight: BlockSparseMatrix | KroneckerSum) -> npt.NDArray[np.int64]:
    """int64 [2, nnzb]: block row and block column of each live block."""
    if isinstance(weight, KroneckerSum):
        return np.stack(np.nonzero(weight.support))
    return np.stack([weight.row_ids.astype(np.int64), weight.indices.astype(np.int64)])


def _other_blocks(trained: tuple[int, int], shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Execution blocks made by merging whole trained blocks or cutting them up."""
    heights, widths = (
        [trained[axis]]
        + [
            s
            for s in _SIDES
            if s <= shape[axis] and (s % trained[axis] == 0 or trained[axis] % s == 0)
        ]
        for axis in (0, 1)
    )
    yield from sorted({(h, w) for h in heights for w in widths} - {trained})


def count_blocks(
    live: npt.NDArray[np.int64], block: tuple[int, int], wanted: tuple[int, int]
) -> int:
    """Live blocks of another size, counting all parts of a cut block as live.

    Args:
        live: int64 [2, nnzb], block row and column of each live block.
        block: Its size.
        wanted: The size to count; each side a multiple or a divisor of the block's.
    """
    cuts = 1
    coarse = []
    for axis in (0, 1):
        side = gcd(block[axis], wanted[axis])
        cuts *= block[axis] // side
        coarse.append(live[axis] // max(1, wanted[axis] // block[axis]))
    if coarse[0].size == 0:
        return 0
    keys = coarse[0] * (int(coarse[1].max()) + 1) + coarse[1]
    flags = np.zeros(int(keys.max()) + 1, bool)
    flags[keys] = True
    return int(np.count_nonzero(flags)) * cuts


def _reason(
    op: LinearOp,
    problem: Problem,
    chosen: _Priced,
    priced: list[_Priced],
    dense: _Priced,
    context: TargetContext,
) -> str:
    """One sentence: what runs, and why not the other."""
    if problem.form == "dense":
        return "stays dense: its weight has no zero blocks"
    assert not isinstance(op.weight, np.ndarray)
    share = f"{100 * op.weight.density:.0f} % of the {_size(op.weight.block)} blocks are live"
    if chosen.candidate.problem.form == "dense":
        limit = _break_even(op, priced, dense.seconds, context)
        if limit is None:
            return f"stays dense: {share}, and no kernel runs blocks of that size"
        return f"stays dense: {share}, break-even is about {100 * limit:.0f} %"
    gain = f"expected {dense.seconds / chosen.seconds:.1f} times as fast as dense"
    block = chosen.candidate.problem.block
    if chosen.candidate.problem.form == "kronecker":
        own = chosen.candidate.problem.dtype
        if own == problem.dtype:
            return f"runs factorized, rank {problem.rank}: {share}, {gain}"
        merged = [e.seconds for e in priced if e.candidate.problem.form == "block_sparse"]
        than = f", {merged[0] / chosen.seconds:.1f} times as merged" if merged else ""
        return (
            f"runs factorized, rank {problem.rank}, in {own}: {share}, "
            f"{gain}{than} in {problem.dtype}"
        )
    if block == problem.block:
        return f"runs block-sparse: {share}, {gain}"
    return f"runs block-sparse in {_size(block)} blocks: {share}, {gain}"


def _break_even(
    op: LinearOp, priced: list[_Priced], dense_seconds: float, context: TargetContext
) -> float | None:
    """The density at which the trained blocks would cost as much as dense; None if unknown."""
    assert not isinstance(op.weight, np.ndarray)
    trained = [entry for entry in priced if entry.candidate.problem.block == op.weight.block]
    if not trained:
        return None
    problem = trained[0].candidate.problem
    template = context.target.template(trained[0].template)
    blocks = (-(-problem.n // problem.block[0])) * (-(-problem.k // problem.block[1]))
    low, high = 0, blocks
    while high - low > max(1, blocks // 200):
        middle = (low + high) // 2
        fewer = replace(problem, nnzb=middle)
        cost = template.cost(fewer, trained[0].config, context.hardware)
        low, high = (middle, high) if cost < _MARGIN * dense_seconds else (low, middle)
    return low / blocks


def _size(block: tuple[int, int]) -> str:
    return f"{block[0]}x{block[1]}"

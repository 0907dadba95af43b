"""How near a measured time comes to what the machine could do at all.

    limit = max(multiply-adds of the form ÷ peak of all cores,
                bytes of weight, x and y ÷ read rate of the level that holds them)

It counts the form that runs, so a sparse kernel is not praised for the work that it skips.
"""

from __future__ import annotations

import numpy as np

from bscompile.dialect.precision import itemsize
from bscompile.targets.base import HardwareSpec, Problem
from bscompile.tuning.measurer import Layer
from bscompile.tuning.record import TuningRecord, Variant


def share_of_roofline(layer: Layer, record: TuningRecord) -> float | None:
    """Limit over measured time, 0 to about 1; None where something else was counted."""
    if layer.context.target.counts:
        return None
    problem = problem_in(layer, record.variant)
    return roofline_seconds(problem, layer.context.hardware) / record.time


def problem_in(layer: Layer, variant: Variant) -> Problem:
    """The layer's problem in the form and block of a candidate."""
    return problems_of(layer)[variant.form, variant.block]


def problems_of(layer: Layer) -> dict[tuple[str, tuple[int, int]], Problem]:
    """The layer's problem in each form and block that it has."""
    from bscompile.targets.planner import candidates

    problems = (candidate.problem for candidate in candidates(layer.op, layer.problem))
    return {(problem.form, problem.block): problem for problem in problems}


def roofline_seconds(problem: Problem, hardware: HardwareSpec) -> float:
    """The least time that the machine needs for one call."""
    peak = hardware.peak_gflops[problem.dtype] * 1e9 * hardware.cores
    moved = traffic_bytes(problem)
    rate = hardware.memory_rate(hardware.cores)
    if moved <= hardware.cache_bytes[-1]:
        rate = max(rate, hardware.cache_gbps[-1] * hardware.cores)
    return max(flops(problem) / peak, moved / (rate * 1e9))


def flops(problem: Problem) -> int:
    """Of one call, a multiplication and an addition counted as two."""
    bh, bw = problem.block
    if problem.form == "kronecker":
        b_first = problem.k * bh + problem.nnzb * bh
        a_first = problem.nnzb * bw + problem.n * bw
        return 2 * problem.rows * problem.rank * min(b_first, a_first)
    return 2 * problem.rows * problem.nnzb * bh * bw


def traffic_bytes(problem: Problem) -> int:
    """Of the weight as that form stores it, x and y, each moved once."""
    item = itemsize(problem.dtype)
    bh, bw = problem.block
    if problem.form == "kronecker":
        weight = problem.rank * (problem.nnzb + bh * bw) * item + 4 * problem.nnzb
    else:
        indices = 0 if problem.form == "dense" else 4 * problem.nnzb
        weight = problem.nnzb * bh * bw * item + indices
    ends = problem.n * np.dtype(problem.y_dtype).itemsize
    ends += problem.k * np.dtype(problem.x_dtype).itemsize
    return weight + problem.rows * ends

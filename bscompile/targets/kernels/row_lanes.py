"""What templates share whose lanes run over rows of x: register tiles, and what a call costs."""

from __future__ import annotations

from bscompile.dialect.precision import itemsize
from bscompile.targets.base import Config, HardwareSpec, Problem
from bscompile.targets.kernels.roofline import (
    LOOP,
    TILE,
    even,
    lanes_of,
    registers_of,
    row_tiles,
    seconds,
    store_units,
    task_counts,
)

TRANSPOSE = 6.0  # units per vector that goes through a transposition


def configurations(problem: Problem, hardware: HardwareSpec) -> list[Config]:
    """``vectors`` of rows per tile whose sums fit the registers, ``tasks`` and ``split``."""
    return [
        {"vectors": vectors, "tasks": tasks, "split": split}
        for vectors in (1, 2, 4, 8)
        if vectors * problem.block[0] <= registers_of(hardware)
        if vectors * lanes_of(hardware) <= problem.rows
        for tasks in task_counts(hardware)
        for split in (("rows", "outputs") if tasks > 1 else ("rows",))
    ]


def expected_seconds(
    problem: Problem,
    config: Config,
    hardware: HardwareSpec,
    *,
    precision: str = "float32",
    group: int = 1,
    ahead: bool = False,
) -> float:
    """Expected time of one call, x being ready.

    Args:
        problem: A block-sparse layer.
        config: One of ``configurations``.
        hardware: The machine.
        precision: What is multiplied in.
        group: Inputs of a word, which one instruction multiplies for each lane.
        ahead: Whether the kernel asks ahead for its weights.
    """
    vectors, tasks = int(config["vectors"]), int(config["tasks"])
    lanes, (bh, bw) = lanes_of(hardware), problem.block
    rows, words = vectors * lanes, problem.k // group
    tiles, block_rows = row_tiles(problem, rows), -(-problem.n // bh)
    by_rows = config["split"] == "rows"
    spread = 0.5 if group == 1 else 1.0  # a multiply-add of float32 reads its weight itself
    units = problem.nnzb * (bw / group * max(bh * vectors, vectors + spread * bh) + LOOP)
    units += block_rows * (bh * vectors + 0.2 * TILE)
    units += TRANSPOSE * words * vectors * (1 if by_rows else tasks)
    units += problem.n * vectors * TRANSPOSE + store_units(problem, rows, problem.n, lanes)
    weight_bytes = float(problem.nnzb * (bh * bw * itemsize(problem.dtype) + 4))
    weight_held = weight_bytes if by_rows else weight_bytes / tasks
    column_bytes = 4.0 * problem.nnzb * (bw // group) * rows
    weights: list[tuple[float, ...]] = [(weight_bytes * tiles, weight_held, weight_bytes)]
    columns: list[tuple[float, ...]] = [(column_bytes * tiles, 4.0 * words * rows)]
    traffic, streamed = (columns, weights) if ahead else (weights + columns, [])
    share = even(tiles if by_rows else block_rows, tasks)
    return seconds(hardware, share, tiles * units, traffic, precision, group, streamed)

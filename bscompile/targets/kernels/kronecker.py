"""The template of factorized layers: both steps fused, the tile between them kept in cache."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from bscompile.dialect import Weight
from bscompile.dialect.precision import itemsize
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Array, Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.packing import Operands, balance, stored, widens
from bscompile.targets.kernels.roofline import (
    COLLIDE,
    epilogue_units,
    even,
    lanes_of,
    registers_of,
    row_tiles,
    rows_collide,
    seconds,
    task_counts,
    vector_units,
)
from bscompile.targets.kernels.vectors import pieces

BLOCK_STEP = 1.0  # units of one multiply-add of the small dense step, broadcast included
NEXT = 0.75  # units to go on to the next coefficient
CHAINS = 4  # vectors of sums, fewer of which leave the multiply-adds waiting for each other
NEAR = 0.75  # share of the nearest cache that holds what is read again
COPY = 2.0  # units of copying a row of a block
NEXT_ROW = 4.0  # units to go on to the next block row or column


class KroneckerTemplate(KernelTemplate):
    """Configuration: ``rows`` per tile, ``tasks``, ``split`` and ``order`` (see the kernel)."""

    name = "kronecker"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Tiles whose sums fit the registers, both orders, the cheapest by cost first."""
        if problem.form != "kronecker" or not widens(problem, hardware):
            return ()
        configs = configurations(problem, hardware)
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        rows, tasks, b_first = (
            int(config["rows"]),
            int(config["tasks"]),
            config["order"] == "b_first",
        )
        lanes, (bh, bw), rank = lanes_of(hardware), problem.block, problem.rank
        tiles = row_tiles(problem, rows)
        block_rows, block_cols = problem.n // bh, problem.k // bw
        by_rows = config["split"] == "rows"
        repeats = 1 if by_rows else tasks  # each task prepares the whole tile for itself
        waits = max(1.0, CHAINS / (rows * len(pieces(bh, lanes))))
        step = BLOCK_STEP * waits * vector_units(bh, lanes)
        product = rank * (rows * bw * step + NEXT_ROW)
        flat = rows * (bh if b_first else bw)
        vectors = vector_units(flat, lanes)
        held = 4.0 * block_cols * flat * (rank if b_first else 1)
        passes = 1 if b_first else -(-rank * vectors // registers_of(hardware))
        units = problem.nnzb * (rank * vectors + passes * NEXT) + block_rows * NEXT_ROW
        read = 4.0 * problem.nnzb * flat * (rank if b_first else passes)
        coefficients = float(problem.nnzb * (itemsize(problem.dtype) * rank + 4))
        # Columns are wanted in no order, so that a cache which holds a part of them serves that.
        near = min(1.0, NEAR * hardware.cache_bytes[0] / held)
        traffic = [
            (tiles * (near * read + coefficients), 0.0),
            (tiles * (1.0 - near) * read, held),
        ]
        if rows_collide(hardware, problem.k, rows):
            units += repeats * block_cols * rows * COLLIDE
        # Sums leave block by block; the epilogue runs on full vectors of several blocks.
        units += block_rows * rows * (len(pieces(bh, lanes)) + bh / lanes * epilogue_units(problem))
        if b_first:
            units += repeats * block_cols * product
        else:
            units += repeats * block_cols * rows * COPY + block_rows * product
        share = even(tiles if by_rows else block_rows, tasks)
        return seconds(hardware, share, tiles * units, traffic)

    def packing(self, problem: Problem, config: Config) -> tuple[Hashable, ...]:
        """The live coefficients and the factors."""
        return ("factors",)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the live coefficients and generate the kernel."""
        from bscompile.targets.kernels.code import kronecker

        assert isinstance(weight, KroneckerSum)
        tasks = int(config["tasks"])
        operands = pack_factors(weight, tasks, problem.dtype)
        func = kronecker.generate(
            problem,
            operands,
            rows=int(config["rows"]),
            lanes=lanes_of(hardware),
            registers=registers_of(hardware),
            tasks=tasks,
            split=str(config["split"]),
            order=str(config["order"]),
        )
        return Kernel(func, operands)


def configurations(problem: Problem, hardware: HardwareSpec) -> list[Config]:
    """Tiles whose sums fit the registers, both orders, in no order themselves."""
    lanes, (bh, bw) = lanes_of(hardware), problem.block
    return [
        {"rows": rows, "tasks": tasks, "split": split, "order": order}
        for order, side in (("b_first", bh), ("a_first", bw))
        for rows in _tile_sizes(problem, side, lanes, registers_of(hardware))
        for tasks in task_counts(hardware)
        for split in (("rows", "outputs") if tasks > 1 else ("rows",))
    ]


def _tile_sizes(problem: Problem, side: int, lanes: int, registers: int) -> list[int]:
    """Rows whose flat [rows, side] fills 2 to 16 vector registers; always a single row."""
    sizes = {1}
    for vectors in (2, 4, 8, 16):
        rows = vectors * lanes // side
        if 1 < rows <= max(1, problem.rows) and vectors <= registers and rows * side % lanes == 0:
            sizes.add(rows)
    return sorted(sizes)


def pack_factors(weight: KroneckerSum, tasks: int, precision: str = "float32") -> Operands:
    """The live coefficients in block-row order and the transposed factors.

    Returns:
        coefficients [nnz, r], indices int32 [nnz], indptr int32 [m1 + 1],
        factors [r, bw, bh], bounds int32 [tasks + 1] (block rows of each task).
    """
    support = weight.support
    rows, cols = np.nonzero(support)
    live = support.sum(axis=1)
    coefficients: Array = np.ascontiguousarray(weight.a[:, rows, cols].T)
    if not len(rows):  # TVM buffers have at least one element
        coefficients, cols = np.zeros((1, weight.rank), weight.a.dtype), np.zeros(1, np.int64)
    return (
        ("coefficients", stored(coefficients, precision)),
        ("indices", cols.astype(np.int32)),
        ("indptr", np.concatenate([[0], np.cumsum(live)]).astype(np.int32)),
        ("factors", stored(weight.b, precision).transpose(0, 2, 1).copy(order="C")),
        ("bounds", balance(live, tasks)),
    )

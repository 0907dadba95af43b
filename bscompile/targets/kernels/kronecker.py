"""The template of factorized layers: both steps fused, the tile between them kept in cache."""

from __future__ import annotations

from collections.abc import Hashable

from bscompile.dialect import Weight
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.kronecker_packing import pack_factors
from bscompile.targets.kernels.packing import widens
from bscompile.targets.kernels.roofline import (
    COLLIDE,
    epilogue_units,
    even,
    lanes_of,
    read_rate,
    registers_of,
    row_tiles,
    rows_collide,
    seconds,
    task_counts,
    unit_seconds,
    vector_units,
)
from bscompile.targets.kernels.vectors import joined, pieces

LOADED = 1.05  # units of a multiply-add that reads its vector
NEXT = 0.3  # units to go on to the next coefficient
LEAST = 1.5  # units of a coefficient, however few vectors it multiplies
SPREAD = 0.7  # units of a coefficient that is spread by a load
PRODUCT = 1.15  # units of one multiply-add of the small dense step, broadcast included
BLOCK = 0.35  # units to begin such a step
EXPOSED = 0.55  # share of the reads past the nearest cache that is not hidden
COPY = 1.4  # units of copying a row of a block
NEXT_ROW = 5.3  # units to go on to the next block row
THROUGH = 1.1  # units of a vector of outputs that is kept in memory on its way
_ZMM = 16  # elements of the vectors whose unit those of scalars are told in
STRAY = 2.2  # units of writing a vector to a line that others push out of the cache


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
        rows, tasks = int(config["rows"]), int(config["tasks"])
        b_first, by_rows = config["order"] == "b_first", config["split"] == "rows"
        lanes, (bh, bw), rank = lanes_of(hardware), problem.block, problem.rank
        tiles, repeats = row_tiles(problem, rows), 1 if by_rows else tasks
        block_rows, block_cols = problem.n // bh, problem.k // bw
        flat = rows * (bh if b_first else bw)
        vectors = vector_units(flat, lanes)
        passes = 1 if b_first else -(-rank * vectors // registers_of(hardware))
        scalar = _ZMM / lanes  # what is not done in vectors takes the same time whatever their size
        if b_first or rank == 1:
            step = max(LOADED * rank * vectors + NEXT * scalar, LEAST * rank * scalar)
        else:  # terms share what they read
            step = rank * (vectors + SPREAD * scalar)
        read = problem.nnzb * 4.0 * flat * (rank if b_first else passes)
        held = 4.0 * block_cols * flat * (rank if b_first else 1)
        units = problem.nnzb * step + passes * block_rows * NEXT_ROW * scalar
        units += late_units(hardware, read, held)
        product = rank * (rows * bw * PRODUCT * vector_units(bh, lanes) + BLOCK)
        if b_first:
            units += repeats * block_cols * product
        else:
            units += repeats * block_cols * rows * len(pieces(bw, lanes)) * COPY
            units += block_rows * product
        if rows_collide(hardware, problem.k, rows):
            units += repeats * block_cols * rows * COLLIDE
        units += leave_units(problem, rows, b_first, hardware)
        # Coefficients pass by once for each tile.
        coefficients = 8.0 * problem.nnzb * (rank // 2 + 1)
        share = even(tiles if by_rows else block_rows, tasks)
        return seconds(hardware, share, tiles * units, [(tiles * coefficients, coefficients)])

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


def late_units(hardware: HardwareSpec, read: float, held: float) -> float:
    """Units that reads wait for what the nearest cache has no room for.

    Args:
        hardware: The machine.
        read: Bytes, in no order, so that a cache which holds a part of them serves that.
        held: Bytes they come from.
    """
    missed = max(0.0, 1.0 - hardware.cache_bytes[0] / held)
    return EXPOSED * missed * read / read_rate(hardware, held, 1) / unit_seconds(hardware)


def leave_units(problem: Problem, rows: int, b_first: bool, hardware: HardwareSpec) -> float:
    """Units of a tile's outputs on their way from the sums to y; see kronecker_outputs.py."""
    lanes, bh = lanes_of(hardware), problem.block[0]
    count = problem.n / bh * rows
    units = problem.n / lanes * rows * epilogue_units(problem)
    if not joined(bh, rows, b_first, lanes, registers_of(hardware)):
        units += count * len(pieces(bh, lanes)) * THROUGH
    if rows_collide(hardware, problem.n, rows):
        units += problem.n / lanes * rows * STRAY
    return units


def _tile_sizes(problem: Problem, side: int, lanes: int, registers: int) -> list[int]:
    """Rows whose flat [rows, side] fills 2 to 16 vector registers; always a single row."""
    sizes = {1}
    for vectors in (2, 4, 8, 16):
        rows = vectors * lanes // side
        if 1 < rows <= max(1, problem.rows) and vectors <= registers and rows * side % lanes == 0:
            sizes.add(rows)
    return sorted(sizes)

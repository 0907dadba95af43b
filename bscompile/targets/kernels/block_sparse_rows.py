"""The template of block-sparse layers with small blocks: lanes run over rows of x."""

from __future__ import annotations

from collections.abc import Hashable

from bscompile.dialect import Weight
from bscompile.dialect.precision import itemsize
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.packing import pack_block_rows, widens
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


class BlockSparseRows(KernelTemplate):
    """Configuration: ``vectors`` of rows per tile, ``tasks`` and ``split`` (see the kernel)."""

    name = "block_sparse_rows"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Tiles whose sums fit the registers, the cheapest by cost first."""
        if problem.form != "block_sparse" or not widens(problem, hardware):
            return ()
        lanes, bh = lanes_of(hardware), problem.block[0]
        configs = [
            {"vectors": vectors, "tasks": tasks, "split": split}
            for vectors in (1, 2, 4, 8)
            if vectors * bh <= registers_of(hardware) and vectors * lanes <= problem.rows
            for tasks in task_counts(hardware)
            for split in (("rows", "outputs") if tasks > 1 else ("rows",))
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        vectors, tasks = int(config["vectors"]), int(config["tasks"])
        lanes, (bh, bw) = lanes_of(hardware), problem.block
        rows = vectors * lanes
        tiles, block_rows = row_tiles(problem, rows), -(-problem.n // bh)
        by_rows = config["split"] == "rows"
        units = problem.nnzb * (bw * max(bh * vectors, vectors + 0.5 * bh) + LOOP)
        units += block_rows * (bh * vectors + 0.2 * TILE)
        units += TRANSPOSE * problem.k * vectors * (1 if by_rows else tasks)
        units += problem.n * vectors * TRANSPOSE + store_units(problem, rows, problem.n, lanes)
        weight_bytes = float(problem.nnzb * (itemsize(problem.dtype) * bh * bw + 4))
        weight_held = weight_bytes if by_rows else weight_bytes / tasks
        column_bytes = 4.0 * problem.nnzb * bw * rows
        traffic = [
            (weight_bytes * tiles, weight_held),
            (column_bytes * tiles, 4.0 * problem.k * rows),
        ]
        share = even(tiles if by_rows else block_rows, tasks)
        return seconds(hardware, share, tiles * units, traffic)

    def packing(self, problem: Problem, config: Config) -> tuple[Hashable, ...]:
        """Block rows, as block_sparse_outputs reads them, too."""
        return ("block rows",)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the live blocks and generate the kernel."""
        from bscompile.targets.kernels.code import block_sparse_rows

        assert isinstance(weight, BlockSparseMatrix)
        tasks = int(config["tasks"])
        operands = pack_block_rows(weight, tasks, problem.dtype)
        func = block_sparse_rows.generate(
            problem,
            operands,
            vectors=int(config["vectors"]),
            lanes=lanes_of(hardware),
            tasks=tasks,
            split=str(config["split"]),
        )
        return Kernel(func, operands)

"""The templates of float32 layers on Arm's SME, dense and block-sparse.

Reckoned for arrays of 16 x 16 sums (vectors of 512 bits), which the processors of the day have.
"""

from __future__ import annotations

from bscompile.dialect import Weight, dense_weight
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.packing import pack_block_rows
from bscompile.targets.kernels.roofline import (
    LOOP,
    OVERLAP,
    even,
    lanes_of,
    read_rate,
    row_tiles,
    seconds,
    store_units,
    task_counts,
)
from bscompile.targets.kernels.scalable import DENSE_BLOCK, pack_dense

FEATURE = "sme"
SIDE = 16  # of a square of sums
_CALL = 150.0  # units of entering and leaving streaming mode with its array
_TRANSPOSE = 1.5  # units of one vector of x


class SmeTemplate(KernelTemplate):
    """Configuration: ``squares`` of sums side by side, ``tasks`` and ``split``.

    Args:
        form: The form that it executes: ``block_sparse`` or ``dense``.
    """

    def __init__(self, form: str) -> None:
        self.name, self._form = f"{form}_sme", form

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Nothing without the array; a single row is left to vectors."""
        if FEATURE not in hardware.features or problem.rows < 2:
            return ()
        if problem.form != self._form or problem.dtype != "float32":
            return ()
        configs = [
            {"squares": squares, "tasks": tasks, "split": split}
            for squares in (4, 2, 1)
            if squares == 1 or (squares - 1) * SIDE < problem.rows
            for tasks in task_counts(hardware)
            for split in (("outputs", "rows") if tasks > 1 else ("outputs",))
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call; fitted to no machine, there was none with the array."""
        squares, tasks = int(config["squares"]), int(config["tasks"])
        (bh, bw), blocks = self._blocks(problem)
        rows = squares * SIDE
        tiles, block_rows = row_tiles(problem, rows), -(-problem.n // bh)
        by_rows = config["split"] == "rows"
        share = even(tiles if by_rows else block_rows, tasks)
        # An outer product fills its square or not; few squares leave its latency visible.
        products = tiles * blocks * bw * -(-bh // SIDE) * max(squares, 3)
        multiply = 2 * products * SIDE * SIDE / (hardware.peak_gflops["sme"] * 1e9) / share
        weight_bytes = 4.0 * blocks * (bh * bw + 1)
        moved = tiles * (weight_bytes + 4.0 * blocks * bw * rows)
        held = weight_bytes / (1 if by_rows else tasks)
        memory = moved / share / read_rate(hardware, held, share)
        lanes = lanes_of(hardware)
        units = tiles * (blocks * LOOP + block_rows * _CALL)
        units += block_rows * store_units(problem, problem.rows, bh, lanes)
        units += _TRANSPOSE * problem.rows * problem.k / lanes
        around = seconds(hardware, share, units, [])
        return max(multiply, memory) + OVERLAP * min(multiply, memory) + around

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the weight and generate the kernel."""
        from bscompile.targets.kernels.code import sme

        tasks, squares = int(config["tasks"]), int(config["squares"])
        if self._form == "dense":
            operands = pack_dense(dense_weight(weight), self._blocks(problem)[0], tasks)
        else:
            assert isinstance(weight, BlockSparseMatrix)
            operands = pack_block_rows(weight, tasks, wide=True)
        func = sme.generate(
            problem,
            operands,
            squares=squares,
            rows=squares * SIDE,
            tasks=tasks,
            split=str(config["split"]),
        )
        return Kernel(func, operands)

    def _blocks(self, problem: Problem) -> tuple[tuple[int, int], int]:
        """Shape and number of the blocks; a dense weight is one whose blocks all live."""
        if self._form == "block_sparse":
            return problem.block, problem.nnzb
        bh, bw = min(DENSE_BLOCK[0], problem.n), min(DENSE_BLOCK[1], problem.k)
        return (bh, bw), -(-problem.n // bh) * -(-problem.k // bw)

"""The template of block-sparse layers with small blocks: lanes run over rows of x."""

from __future__ import annotations

from collections.abc import Hashable

from bscompile.dialect import Weight
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.packing import pack_block_rows, widens
from bscompile.targets.kernels.roofline import lanes_of
from bscompile.targets.kernels.row_lanes import configurations, expected_seconds


class BlockSparseRows(KernelTemplate):
    """Configuration: ``vectors`` of rows per tile, ``tasks`` and ``split`` (see the kernel)."""

    name = "block_sparse_rows"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Tiles whose sums fit the registers, the cheapest by cost first."""
        if problem.form != "block_sparse" or not widens(problem, hardware):
            return ()
        configs = configurations(problem, hardware)
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        return expected_seconds(problem, config, hardware, ahead=True)

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

"""The template of block-sparse layers with tall enough blocks: lanes run over outputs."""

from __future__ import annotations

from bscompile.dialect import Weight
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.packing import pack_block_rows

MAX_HEIGHT = 64  # taller blocks would not leave registers for more than a few rows


class BlockSparseOutputs(KernelTemplate):
    """Configuration: ``rows`` per tile, ``tasks``, ``split`` and ``outer`` (see the kernel)."""

    name = "block_sparse_outputs"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Register tiles that fit the machine, the cheapest by cost first."""
        bh, _ = problem.block
        if problem.form != "block_sparse" or problem.dtype != "float32" or bh > MAX_HEIGHT:
            return ()
        lanes = hardware.vector_bytes // 4
        vectors = -(-bh // lanes)
        registers = 28 if hardware.vector_bytes == 64 else 12
        sizes = [r for r in (8, 6, 12, 16, 4, 2, 1) if r * vectors <= registers]
        sizes = [r for r in sizes if r <= max(1, problem.rows)]
        return tuple(
            {"rows": r, "tasks": hardware.cores, "split": "outputs", "outer": outer}
            for r in sizes
            for outer in ("rows", "outputs")
        )

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        bh, bw = problem.block
        flops = 2 * problem.rows * problem.nnzb * bh * bw
        return flops / (hardware.peak_gflops["float32"] * 1e9)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the live blocks and generate the kernel."""
        from bscompile.targets.kernels.code import block_sparse_outputs

        assert isinstance(weight, BlockSparseMatrix)
        tasks = int(config["tasks"])
        operands = pack_block_rows(weight, tasks)
        func = block_sparse_outputs.generate(
            problem,
            operands,
            rows=int(config["rows"]),
            lanes=hardware.vector_bytes // 4,
            tasks=tasks,
            split=str(config["split"]),
            outer=str(config["outer"]),
        )
        return Kernel(func, operands)

"""Factorized layers on tensor cores: blocks are rebuilt on chip from r numbers each.

The steps are those of a block-sparse layer, but what is read of W are the coefficients: r for a
whole block. Every thread block makes the values in shared memory, by float32 arithmetic on CUDA
cores, and tensor cores multiply them; so this pays where reading W is what a layer's time goes
into, and against the other factorized kernel where blocks are wide or ranks high.
"""

from __future__ import annotations

from dataclasses import replace

from bscompile.dialect import Weight
from bscompile.dialect.precision import itemsize
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Config, HardwareSpec, Problem
from bscompile.targets.cuda.kernels.packing import Operands, expected_steps, pack_coefficients
from bscompile.targets.cuda.kernels.roofline import FMA_SHARE, Work
from bscompile.targets.cuda.kernels.steps import HALVES, TensorCores


class Rebuilt(TensorCores):
    """Configuration: as of TensorCores; ``group`` is the width of a block."""

    dtypes = HALVES
    cuts_rows = False

    def __init__(self) -> None:
        super().__init__("kronecker")

    def shapes(self, problem: Problem) -> list[dict[str, int | str]]:
        """Tiles of whole blocks, whose width must fill a step."""
        bh, bw = problem.block
        if bw < 2 or self.step(problem.dtype) % bw:
            return []
        return [shape for shape in super().shapes(problem) if int(shape["tile"]) % bh == 0]

    def group(self, problem: Problem) -> int:
        """The width of a block, whatever would be wide enough otherwise."""
        return problem.block[1]

    def work(self, problem: Problem, config: Config, rate: float) -> Work:
        """As of a block-sparse layer, but values are made, not read."""
        work, layout = super().work(problem, config, rate), self.layout(problem, config)
        (bh, bw), size = problem.block, itemsize(problem.dtype)
        tiles = -(-problem.rows // int(config["rows"]))
        numbers = expected_steps(problem, layout) * layout.rows * layout.step
        saved = size * numbers * (1.0 - problem.rank / (bh * bw))
        return replace(work, near_bytes=work.near_bytes - saved * tiles,
                       far_bytes=work.far_bytes - saved)  # fmt: skip

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call; making the values does not overlap with using them."""
        layout = self.layout(problem, config)
        numbers = expected_steps(problem, layout) * layout.rows * layout.step
        made = 2.0 * problem.rank * numbers * -(-problem.rows // int(config["rows"]))
        # Each needs its place in A and B, and a store: a quarter of what sums in registers reach.
        rate = hardware.peak_gflops["float32"] * 1e9 * FMA_SHARE / 4
        return super().cost(problem, config, hardware) + made / (rate * hardware.cores)

    def pack(self, problem: Problem, weight: Weight, config: Config) -> Operands:
        """The coefficients in steps, and the factors."""
        assert isinstance(weight, KroneckerSum)
        return pack_coefficients(weight, self.layout(problem, config), problem.dtype)

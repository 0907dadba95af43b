"""The template of factorized layers in bfloat16 on dot products of pairs."""

from __future__ import annotations

from collections.abc import Hashable

from bscompile.dialect import Weight
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.kronecker import (
    COPY,
    NEXT_ROW,
    configurations,
    late_units,
    leave_units,
)
from bscompile.targets.kernels.kronecker_packing import pack_factor_words
from bscompile.targets.kernels.narrow import instruction
from bscompile.targets.kernels.roofline import (
    even,
    lanes_of,
    registers_of,
    row_tiles,
    seconds,
    vector_units,
)

ZIP = 4 / 3  # units of two vectors of sums of one term: their pairs are made by two shuffles
PRODUCT = 0.7  # units of one input of the small dense step, half a pair, broadcast included
ROUND = 3.0  # units of rounding a vector of x
CHAINS = 4  # vectors of sums, fewer of which leave the instructions waiting for each other
MOST = 8  # vectors of sums, more of which would leave no registers for what is added to them


class NarrowKronecker(KernelTemplate):
    """Configuration: ``rows`` per tile, ``tasks``, ``split`` and ``order`` (see the kernel)."""

    name = "narrow_kronecker"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """As of kronecker.py, for blocks of whole vectors of outputs and pairs of inputs."""
        bh, bw = problem.block
        if problem.form != "kronecker" or instruction(problem.dtype, hardware) != "bf16":
            return ()
        if bh % 4 or bw % 2 or lanes_of(hardware) != 16:
            return ()
        most = MOST * lanes_of(hardware)
        configs = [
            config
            for config in configurations(problem, hardware)
            if int(config["rows"]) * (bh if config["order"] == "b_first" else bw) <= most
            or config["rows"] == 1
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        rows, tasks = int(config["rows"]), int(config["tasks"])
        b_first, by_rows = config["order"] == "b_first", config["split"] == "rows"
        lanes, (bh, bw), rank = lanes_of(hardware), problem.block, problem.rank
        tiles, repeats = row_tiles(problem, rows), 1 if by_rows else tasks
        block_rows, block_cols = problem.n // bh, problem.k // bw
        paired = _paired(rank, b_first)
        flat = rows * (bh if b_first else bw)
        sums = -(-flat // lanes) if paired else 2 * -(-flat // (2 * lanes))
        terms = -(-rank // 2) if paired else rank
        held = 2.0 * block_cols * flat * (2 * terms if paired else 1)
        if paired:
            steps = float(problem.nnzb)
            units = steps * terms * max(sums, CHAINS)
            read = 4.0 * steps * terms * flat
        else:
            steps = 0.5 * (problem.nnzb + 0.5 * block_rows)
            passes = -(-rank * sums // registers_of(hardware))
            units = steps * max(max(rank, ZIP) * sums, CHAINS)
            read = 4.0 * steps * flat * passes
        product = rank * (rows * (PRODUCT * bw * vector_units(bh, lanes) + 1.0) + NEXT_ROW)
        units += block_rows * NEXT_ROW
        if b_first:
            units += repeats * (ROUND * rows * problem.k / lanes + block_cols * product)
        else:
            units += repeats * block_cols * rows * COPY + block_rows * product
        units += late_units(hardware, read, held) + leave_units(problem, rows, b_first, hardware)
        coefficients = steps * (4.0 * terms + (4 if paired else 8))
        traffic = [(tiles * coefficients, coefficients)]
        share = even(tiles if by_rows else block_rows, tasks)
        return seconds(hardware, share, tiles * units, traffic, problem.dtype, 2)

    def packing(self, problem: Problem, config: Config) -> tuple[Hashable, ...]:
        """Coefficients of two terms in a word, or of two columns."""
        return "factor words", _paired(problem.rank, config["order"] == "b_first")

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the live coefficients in pairs and generate the kernel."""
        from bscompile.targets.kernels.code import kronecker_narrow

        assert isinstance(weight, KroneckerSum)
        tasks, order = int(config["tasks"]), str(config["order"])
        operands = pack_factor_words(weight, tasks, paired=_paired(weight.rank, order == "b_first"))
        func = kronecker_narrow.generate(
            problem,
            operands,
            rows=int(config["rows"]),
            registers=registers_of(hardware),
            tasks=tasks,
            split=str(config["split"]),
            order=order,
        )
        return Kernel(func, operands)


def _paired(rank: int, b_first: bool) -> bool:
    """Whether terms are added in pairs, else columns."""
    return b_first and rank > 1

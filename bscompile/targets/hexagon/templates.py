"""The kernel templates: int8 layers on HVX, float32 ones in scalar code."""

from __future__ import annotations

from bscompile.dialect import Weight
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.hexagon.hardware import CLOCK_GHZ
from bscompile.targets.hexagon.packing import (
    LANES,
    PANEL,
    fits,
    pack,
    quantized,
    requantizer_of,
)
from bscompile.targets.kernels.block_sparse_outputs import BlockSparseOutputs
from bscompile.targets.kernels.dense import DenseTemplate
from bscompile.targets.kernels.kronecker import KroneckerTemplate
from bscompile.targets.kernels.narrow import NarrowProducts

_LONGEST_SUM = 1 << 16  # inputs whose products surely fit an int32 sum
#: What leaves in integers; other epilogues go through float32.
_SHORT_EPILOGUES = ((), ("bias",), ("relu",), ("bias", "relu"))
# Packets of instructions, as counted under the emulator.
_STEP = 1.0  # of a vector of weights, once for all rows
_MULTIPLY = 2.0  # of one multiply-add and the broadcast of its input
_BLOCK = 8.0
_PANEL = 60.0
_INTEGER_PANEL = 40.0  # to requantise 128 outputs
_FLOAT_OUTPUT = 40.0  # to scale one output


class HvxTemplate(KernelTemplate):
    """int8 layers of one form; configuration: ``rows`` per tile."""

    def __init__(self, form: str) -> None:
        self.name, self._form = f"hvx_{form}", form

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Tiles whose sums fit the registers, the cheapest by cost first."""
        if problem.form != self._form or problem.dtype != "int8" or problem.k > _LONGEST_SUM:
            return ()
        if self._form == "block_sparse" and not fits(problem.block):
            return ()
        configs = [{"rows": rows} for rows in (1, 2, 4, 8) if rows <= max(1, problem.rows)]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Packets at the nominal clock."""
        rows = int(config["rows"])
        dense = self._form == "dense"
        bw = problem.k if dense else problem.block[1]
        halves = 1 if dense else LANES // problem.block[0]
        blocks = -(-problem.n // LANES) if dense else problem.nnzb
        tiles, panels = -(-problem.rows // rows), -(-problem.n // PANEL)
        steps = -(-bw // (4 * halves))
        packets = blocks * (steps * (_STEP + rows * halves * _MULTIPLY) + _BLOCK)
        packets += panels * (_PANEL + rows * _INTEGER_PANEL)
        if problem.y_dtype == "float32" or problem.epilogue not in _SHORT_EPILOGUES:
            packets += rows * problem.n * _FLOAT_OUTPUT
        return tiles * packets / (CLOCK_GHZ * 1e9)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the weight for the vectors and generate the kernel."""
        from bscompile.targets.hexagon.code import matmul

        matrix = quantized(weight)
        dense = self._form == "dense"
        operands = pack(matrix, dense=dense)
        short = problem.epilogue in _SHORT_EPILOGUES
        func = matmul.generate(
            problem,
            operands,
            rows=int(config["rows"]),
            height=LANES if dense else problem.block[0],
            requantizer=requantizer_of(matrix) if short else None,
        )
        return Kernel(func, operands)


TEMPLATES: tuple[KernelTemplate, ...] = (
    HvxTemplate("dense"),
    HvxTemplate("block_sparse"),
    DenseTemplate(),
    BlockSparseOutputs(),
    KroneckerTemplate(),
    NarrowProducts(),  # int8 in other blocks
)

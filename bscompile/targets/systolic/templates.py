"""The kernel templates: int8 layers on the array, all others on the host.

The array runs blocks of its own size. A layer trained in other blocks is cut anew, so the planner
offers several execution blocks and takes the one that costs fewest cycles: blocks merged with
fill-in, not blocks that leave most of the array idle.
"""

from __future__ import annotations

from math import gcd

import numpy as np

from bscompile.devices.systolic import CLOCK_HZ
from bscompile.dialect import Weight
from bscompile.dialect.precision import QuantizedMatrix, quantize_weight
from bscompile.dialect.quantization import Quantization
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Array, Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.block_sparse_outputs import BlockSparseOutputs
from bscompile.targets.kernels.block_sparse_rows import BlockSparseRows
from bscompile.targets.kernels.dense import DenseTemplate
from bscompile.targets.kernels.kronecker import KroneckerTemplate
from bscompile.targets.systolic.commands import command_stream, layer_cycles
from bscompile.targets.systolic.hardware import SystolicSpec

_LONGEST_SUM = 1 << 16  # inputs whose products surely fit an int32 sum
_LIMITS = {"uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}


class ArrayTemplate(KernelTemplate):
    """A layer of one form as a command stream; configuration: ``array``, its side."""

    def __init__(self, form: str) -> None:
        self.name, self._form = f"array_{form}", form

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """One configuration, for int8 layers of the template's form."""
        assert isinstance(hardware, SystolicSpec)
        if problem.form != self._form or problem.dtype != "int8" or problem.k > _LONGEST_SUM:
            return ()
        return ({"array": hardware.size},)

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """The array's cycles at its nominal clock."""
        assert isinstance(hardware, SystolicSpec)
        size = hardware.size
        cycles = layer_cycles(array_blocks(problem, size), problem.rows, size, hardware.depth)
        # Between equals the array's own blocks: those that run, so that reports say what runs.
        foreign = problem.form != "dense" and problem.block != (size, size)
        return (cycles + 0.01 * foreign) / CLOCK_HZ

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Cut the weight into the array's blocks, write its commands and the host code around."""
        from bscompile.targets.systolic import kernel

        assert isinstance(hardware, SystolicSpec)
        operands = pack(weight, hardware.size, dense=self._form == "dense")
        return Kernel(kernel.generate(problem, operands, hardware), operands)


TEMPLATES: tuple[KernelTemplate, ...] = (
    ArrayTemplate("dense"),
    ArrayTemplate("block_sparse"),
    DenseTemplate(),
    BlockSparseOutputs(),
    BlockSparseRows(),
    KroneckerTemplate(),
)


def array_blocks(problem: Problem, size: int) -> int:
    """Blocks of the array's size that a layer has.

    Exact for dense layers and where no block row is empty, as after the pass Shrink; of each
    block row at least one block counts, because an empty one costs its zeros. Blocks that are no
    multiples of the array count as all the array's blocks that so many of them can touch.
    """
    rows, columns = (-(-length // size) for length in (problem.n, problem.k))
    if problem.form == "dense":
        return rows * columns
    # Blocks begin at multiples of their side: at worst gcd(side, size) short of an array's edge.
    touched = [-(-(size - gcd(side, size) + side) // size) for side in problem.block]
    return max(rows, min(rows * columns, problem.nnzb * touched[0] * touched[1]))


def pack(weight: Weight, size: int, *, dense: bool) -> tuple[tuple[str, Array], ...]:
    """The weight as the device and the host code around it want it.

    Args:
        weight: int8 with its quantisation, or float32 that is quantised here.
        size: Of the array.
        dense: Whether blocks of zeros are kept.

    Returns:
        blocks int8 [blocks, size (input), size (output)], commands int32 [count, 3],
        scale float32 [n], sums int32 [n] (Σ w of each output), constants float32 [6] (s, z,
        lowest and highest of q for static quantisation; s' and z' of a quantised y).
    """
    if not isinstance(weight, QuantizedMatrix):
        numbers, scale = quantize_weight(weight)
        weight = QuantizedMatrix.of(numbers, Quantization(scale))
    ends = weight.quantization
    side = (size, size)
    matrix = all_blocks(weight.to_dense(), side) if dense else _plain(weight).reblock(side)
    blocks = np.ascontiguousarray(matrix.values.transpose(0, 2, 1))
    if not len(blocks):  # TVM buffers have at least one element
        blocks = np.zeros((1, size, size), np.int8)
    sums = np.zeros((matrix.block_rows, size), np.int64)
    np.add.at(sums, matrix.row_ids, matrix.values.astype(np.int64).sum(axis=2))
    static = (ends.x_scale, ends.x_zero, *_LIMITS[ends.q_dtype])
    return (
        ("blocks", blocks),
        ("commands", command_stream(matrix)),
        ("scale", ends.scale),
        ("sums", sums.reshape(-1)[: matrix.shape[0]].astype(np.int32)),
        ("constants", np.array([*static, ends.y_scale, ends.y_zero], np.float32)),
    )


def _plain(matrix: BlockSparseMatrix) -> BlockSparseMatrix:
    """Without the quantisation, which cutting anew would not carry along."""
    return BlockSparseMatrix(matrix.values, matrix.indices, matrix.indptr, matrix.shape)


def all_blocks(weight: Array, block: tuple[int, int]) -> BlockSparseMatrix:
    """A dense weight with all its blocks stored, those of zeros too."""
    from bscompile.formats.block_sparse import to_tiles

    tiles = to_tiles(weight, block)
    rows, columns = tiles.shape[:2]
    return BlockSparseMatrix(
        tiles.reshape(-1, *block),
        np.tile(np.arange(columns, dtype=np.int32), rows),
        np.arange(0, rows * columns + 1, columns, dtype=np.int32),
        (int(weight.shape[0]), int(weight.shape[1])),
    )

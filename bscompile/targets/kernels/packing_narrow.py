"""How bfloat16 and int8 weights are laid out for dot product instructions."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from bscompile.dialect import Weight
from bscompile.dialect.precision import QuantizedMatrix, cast_weight, quantize_weight
from bscompile.dialect.quantization import LIMITS, Quantization
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Array
from bscompile.targets.kernels.packing import Operands, balance, first_inputs, stacked


def pack_dots(
    weight: BlockSparseMatrix,
    group: int,
    multiple: int,
    tasks: int,
    dtype: Any,
    tile: int = 1,
    chunks: int = 1,
) -> Operands:
    """Block rows whose inputs stand in groups, and whose outputs fill whole vectors.

    The inputs of a block are padded with zeros to whole groups, and its outputs to a multiple of
    ``multiple``. What reaches over the last input goes: x ends there.

    Args:
        weight: Live blocks [nnzb, bh, bw].
        group: Inputs of one step.
        multiple: Outputs of the narrowest vector.
        tasks: Parallel tasks.
        dtype: Of the numbers.
        tile: Inputs are padded to a multiple of this.
        chunks: Chunks of columns whose block rows follow each other.

    Returns:
        values [nnzb, steps, height, group] of ``dtype``, starts [nnzb] (see ``first_inputs``),
        indptr int32 [chunks * block rows + 1], bounds int32 [tasks + 1] (block rows of each task).
    """
    (bh, bw), (n, k) = weight.block, weight.shape
    bh, bw = min(bh, n), min(bw, k)
    bounds = balance(np.diff(weight.indptr), tasks)
    weight = stacked(weight, chunks)
    starts = weight.indices.astype(np.int64) * weight.block[1]
    values = weight.values[:, :bh, :bw]
    over = starts + bw > k
    if over.any():  # move back over the neighbour, with zeros where that has its own weights
        shift = int((starts[over] + bw - k).max())
        moved = np.zeros_like(values[over])
        moved[:, :, shift:] = values[over][:, :, : bw - shift]
        values = values.copy()
        values[over] = moved
        starts[over] = k - bw
    steps, height = _up(bw, max(group, tile)) // group, _up(bh, multiple)
    packed = np.zeros((max(1, len(values)), steps * group, height), dtype)
    packed[: len(values), :bw, :bh] = values.transpose(0, 2, 1)
    packed = packed.reshape(len(packed), steps, group, height).transpose(0, 1, 3, 2)
    if not len(starts):  # TVM buffers have at least one element
        starts = np.zeros(1, np.int64)
    return (
        ("values", np.ascontiguousarray(packed)),
        ("starts", first_inputs(starts, k)),
        ("indptr", weight.indptr),
        ("bounds", bounds),
    )


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def as_panels(weight: Weight, width: int) -> BlockSparseMatrix:
    """A dense W [n, k] as one block of ``width`` x k in each block row; others as they are."""
    if isinstance(weight, BlockSparseMatrix):
        return weight
    assert isinstance(weight, np.ndarray)
    n, k = weight.shape
    panels = -(-n // width)
    padded = np.zeros((panels * width, k), weight.dtype)
    padded[:n] = weight
    return BlockSparseMatrix(
        padded.reshape(panels, width, k),
        np.zeros(panels, np.int32),
        np.arange(panels + 1, dtype=np.int32),
        (n, k),
    )


def pack_bfloat16(
    weight: Weight,
    width: int,
    group: int,
    multiple: int,
    tasks: int,
    tile: int = 1,
    chunks: int = 1,
) -> Operands:
    """bfloat16, two in one int32: values int32 [nnzb, steps, height * group / 2]."""
    dtype = ml_dtypes.bfloat16
    matrix = as_panels(cast_weight(weight, dtype), width)
    (name, values), *rest = pack_dots(matrix, group, multiple, tasks, dtype, tile, chunks)
    return ((name, values.view(np.int32).reshape(*values.shape[:2], -1)), *rest)


def pack_int8(
    weight: Weight,
    width: int,
    group: int,
    multiple: int,
    tasks: int,
    tile: int = 1,
    chunks: int = 1,
    *,
    dense: bool,
    in_words: bool,
) -> Operands:
    """int8 weights with what their sums need.

    Args:
        weight: int8, or float32 that is quantised here, symmetric with a scale per output.
        width: Outputs of a panel of a dense weight.
        group: Inputs of one step.
        multiple: Outputs of the narrowest vector.
        tasks: Parallel tasks.
        tile: Inputs are padded to a multiple of this.
        chunks: Chunks of columns whose block rows follow each other.
        dense: Whether the weight runs in panels, whatever it comes as.
        in_words: Whether four numbers make one int32.

    Returns:
        values int32 [nnzb, steps, height * group / 4] or int8 [nnzb, steps, height * group],
        starts, indptr, bounds, and those of ``quantized_operands``.
    """
    if not isinstance(weight, QuantizedMatrix):
        numbers, scale = quantize_weight(weight)
        weight = QuantizedMatrix.of(numbers, Quantization(scale))
    quantization = weight.quantization
    matrix = as_panels(weight.to_dense(), width) if dense else weight
    (name, values), *rest = pack_dots(matrix, group, multiple, tasks, np.int8, tile, chunks)
    words = values.view(np.int32) if in_words else values
    flat: Array = words.reshape(*values.shape[:2], -1)
    return ((name, flat), *rest, *quantized_operands(matrix, quantization))


def quantized_operands(matrix: BlockSparseMatrix, quantization: Quantization) -> Operands:
    """What turns int32 sums into numbers.

    Returns:
        scale float32 [n], sums int32 [n] (Σ w of each output) and constants float32 [6] (s, z,
        lowest and highest of q, of use in static mode only; s' and z' of a quantised y).
    """
    low, high = LIMITS[quantization.q_dtype]
    ends = (quantization.x_scale, quantization.x_zero, low, high)
    constants = np.array([*ends, quantization.y_scale, quantization.y_zero], np.float32)
    return (
        ("scale", quantization.scale),
        ("sums", _row_sums(matrix)),
        ("constants", constants),
    )


def _row_sums(matrix: BlockSparseMatrix) -> Array:
    """int32 [n]: Σ of each row of W."""
    sums = np.zeros((matrix.block_rows, matrix.block[0]), np.int64)
    np.add.at(sums, matrix.row_ids, matrix.values.astype(np.int64).sum(axis=2))
    return sums.reshape(-1)[: matrix.shape[0]].astype(np.int32)

"""The dtypes that a layer's weight may be stored and multiplied in, and the way into them.

``float32``   as the model has it
``bfloat16``  8 bits of mantissa, float32's range
``float16``   11 bits, up to 65504
``int8``      integers times one scale per output, see quantization.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from bscompile.dialect.ops import LinearOp, Weight
from bscompile.dialect.quantization import Quantization, quantize_rows
from bscompile.errors import UsageError
from bscompile.formats import BlockSparseMatrix, KroneckerSum

PRECISIONS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}


@dataclass(frozen=True, eq=False)
class QuantizedMatrix(BlockSparseMatrix):
    """An int8 matrix that knows what its numbers stand for: what kernel templates are given.

    Attributes:
        quantization: Of the layer.
    """

    quantization: Quantization

    @classmethod
    def of(cls, weight: Weight, quantization: Quantization) -> QuantizedMatrix:
        """Attach; a dense weight becomes one block as large as itself."""
        if isinstance(weight, np.ndarray):
            weight = BlockSparseMatrix.from_dense(weight, (weight.shape[0], weight.shape[1]))
        assert isinstance(weight, BlockSparseMatrix)
        return cls(weight.values, weight.indices, weight.indptr, weight.shape, quantization)


def precision_named(text: str) -> str:
    """The precision that a user means by a name such as ``bf16``.

    Raises:
        UsageError: no precision has that name.
    """
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    precision = short.get(text, text)
    if precision not in PRECISIONS:
        raise UsageError(f"unknown dtype {text!r}", "use float32, bf16, fp16 or int8")
    return precision


def itemsize(precision: str) -> int:
    """Bytes of one weight."""
    return (
        PRECISIONS[precision].itemsize if precision in PRECISIONS else np.dtype(precision).itemsize
    )


def cast_weight(weight: Weight, dtype: Any) -> Weight:
    """The same weight with its numbers rounded to another dtype; its pattern stays."""
    if isinstance(weight, KroneckerSum):
        return weight.astype(dtype)
    if isinstance(weight, BlockSparseMatrix):
        values = weight.values.astype(dtype, copy=False)
        return BlockSparseMatrix(values, weight.indices, weight.indptr, weight.shape)
    return weight.astype(dtype, copy=False)


def precision_of(weight: Weight) -> np.dtype[Any]:
    """The dtype of a weight's numbers."""
    if isinstance(weight, KroneckerSum):
        return weight.a.dtype
    return weight.values.dtype if isinstance(weight, BlockSparseMatrix) else weight.dtype


def largest(weight: Weight) -> float:
    """The largest number that is stored of a weight."""
    if isinstance(weight, KroneckerSum):
        return max(largest(weight.a), largest(weight.b))
    numbers = weight.values if isinstance(weight, BlockSparseMatrix) else weight
    return float(np.abs(numbers).max(initial=0))


def kernel_weight(op: LinearOp) -> Weight:
    """The weight as kernel templates are given it: int8 numbers with what they stand for."""
    if op.quantization is None:
        return op.weight
    return QuantizedMatrix.of(op.weight, op.quantization)


def form_precision(form: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What a weight in some form is multiplied in where ``dtype`` is asked for.

    A Kronecker sum has no one scale for each output: asked for int8 it stays in float32, and
    where that is slower than to merge it, the planner merges.
    """
    return PRECISIONS["float32"] if form == "kronecker" and dtype == np.int8 else dtype


def in_precision(op: LinearOp, dtype: np.dtype[Any]) -> LinearOp:
    """The layer with its weight in ``dtype``, or what its form is multiplied in where not that.

    The op itself where it is in that already.
    """
    dtype = form_precision(op.form, dtype)
    if precision_of(op.weight) == dtype:
        return op
    if dtype == np.int8:
        weight, scale = quantize_weight(op.weight)
        return LinearOp(op.name, weight, op.epilogue, op.conv, Quantization(scale))
    return op.with_weight(cast_weight(op.weight, dtype))


def quantize_weight(weight: Weight) -> tuple[Weight, np.ndarray[Any, Any]]:
    """int8 numbers and float32 scales [out] with W ~ scale[:, None] * numbers.

    Raises:
        ValueError: the weight is a Kronecker sum.
    """
    if isinstance(weight, KroneckerSum):
        raise ValueError("a Kronecker sum has no int8 form")  # noqa: TRY004  # a form, not a type
    if not isinstance(weight, BlockSparseMatrix):
        return quantize_rows(weight)
    out, bh = weight.shape[0], weight.block[0]
    largest = np.zeros(weight.block_rows * bh, np.float32)
    np.maximum.at(
        largest.reshape(-1, bh), weight.row_ids, np.abs(weight.values).max(axis=2, initial=0)
    )
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    divided = weight.values / scale.reshape(-1, bh)[weight.row_ids][:, :, None]
    values = np.clip(np.rint(divided), -127, 127).astype(np.int8)
    return BlockSparseMatrix(values, weight.indices, weight.indptr, weight.shape), scale[:out]

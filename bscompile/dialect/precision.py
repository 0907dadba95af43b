"""The dtypes that a layer's weight may be stored and multiplied in, and the way into them.

``float32``   as the model has it
``tf32``      11 bits of mantissa, float32's range and storage: numbers of tensor cores
``bfloat16``  8 bits of mantissa, float32's range
``float16``   11 bits, up to 65504
``int8``      integers times one scale per output, see quantization.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bscompile.dialect.ops import LinearOp, Weight
from bscompile.dialect.quantization import Quantization, quantize_rows
from bscompile.errors import UsageError
from bscompile.formats import BlockSparseMatrix, KroneckerSum

#: Of the bits of a float32: what tf32 keeps, and half of its last place, to round by.
TF32_KEPT, TF32_HALF = np.uint32(0xFFFFE000), np.uint32(0x1000)
_QUIET = np.uint32(1 << 22)
_INFINITE = np.uint32(0xFF000000)  # the bits of an infinity without its sign, moved up by one


@dataclass(frozen=True)
class Rounded:
    """A precision that is no dtype of its own: numbers of another one, with fewer bits.

    Attributes:
        name: What users and problems call it.
        storage: The dtype that its numbers lie in.
    """

    name: str
    storage: np.dtype[Any]

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.storage.itemsize


#: What is multiplied in: a dtype, or numbers of one that have fewer bits.
Precision = np.dtype[Any] | Rounded

TF32 = Rounded("tf32", np.dtype(np.float32))
PRECISIONS: dict[str, Precision] = {
    "float32": np.dtype(np.float32),
    "tf32": TF32,
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
        raise UsageError(f"unknown dtype {text!r}", "use float32, tf32, bf16, fp16 or int8")
    return precision


def itemsize(precision: str) -> int:
    """Bytes of one weight."""
    return (
        PRECISIONS[precision].itemsize if precision in PRECISIONS else np.dtype(precision).itemsize
    )


def stored_dtype(precision: str) -> np.dtype[Any]:
    """The dtype that numbers of a precision lie in; bfloat16 is not numpy's own."""
    known = PRECISIONS.get(precision) or np.dtype(precision)
    return known.storage if isinstance(known, Rounded) else known


def rounded(numbers: npt.NDArray[Any], precision: Precision) -> npt.NDArray[Any]:
    """Numbers in a precision, in its storage; the array itself where it has none to round.

    To tf32 as PTX's cvt.rna does: to the nearest, of two as near ones the greater in magnitude.
    """
    if not isinstance(precision, Rounded):
        return numbers.astype(precision, copy=False)
    bits = np.ascontiguousarray(numbers, precision.storage).view(np.uint32)
    if not (bits & ~TF32_KEPT).any():
        return bits.view(precision.storage)
    nan = (bits << np.uint32(1)) > _INFINITE  # stays one, whichever of its bits were set
    kept = np.where(nan, bits | _QUIET, bits + TF32_HALF)
    return (kept & TF32_KEPT).view(precision.storage)


def cast_weight(weight: Weight, precision: Precision) -> Weight:
    """The same weight with its numbers rounded to another precision; its pattern stays."""
    if isinstance(weight, KroneckerSum):
        return KroneckerSum(rounded(weight.a, precision), rounded(weight.b, precision))
    if isinstance(weight, BlockSparseMatrix):
        values = rounded(weight.values, precision)
        return BlockSparseMatrix(values, weight.indices, weight.indptr, weight.shape)
    return rounded(weight, precision)


def precision_of(op: LinearOp) -> Precision:
    """What a layer is multiplied in: what it says, or the dtype of its weight's numbers."""
    if op.precision:
        return PRECISIONS[op.precision]
    weight = op.weight
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


def form_precision(form: str, dtype: Precision) -> Precision:
    """What a weight in some form is multiplied in where ``dtype`` is asked for.

    A Kronecker sum has no one scale for each output, and no kernel multiplies its factors in
    tf32: asked for int8 or tf32 it stays in float32, and where that is slower than to merge it,
    the planner merges.
    """
    whole = form == "kronecker" and (dtype == np.int8 or dtype == TF32)
    return PRECISIONS["float32"] if whole else dtype


def in_precision(op: LinearOp, dtype: Precision) -> LinearOp:
    """The layer with its weight in ``dtype``, or what its form is multiplied in where not that.

    The op itself where it is in that already.
    """
    dtype = form_precision(op.form, dtype)
    if precision_of(op) == dtype:
        return op
    if dtype == np.int8:
        weight, scale = quantize_weight(op.weight)
        return LinearOp(op.name, weight, op.epilogue, op.conv, Quantization(scale))
    precision = dtype.name if isinstance(dtype, Rounded) else ""
    return replace(op, weight=cast_weight(op.weight, dtype), precision=precision)


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

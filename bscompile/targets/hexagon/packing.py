"""How int8 weights are laid out for HVX, and the integers that stand for their scales.

A vector of 128 bytes holds four inputs for each of 32 outputs, or eight for each of 16: then the
upper half holds the second four, and the halves of the sums are added at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bscompile.dialect import Weight
from bscompile.dialect.precision import QuantizedMatrix, quantize_weight
from bscompile.dialect.quantization import LIMITS, Quantization
from bscompile.targets.base import Array
from bscompile.targets.kernels.packing import Operands
from bscompile.targets.kernels.packing_narrow import as_panels

LANES = 32  # outputs, or halves of 16, of one vector
PANEL = 128  # outputs that leave as one vector of bytes
MOST_DOWN = 18  # binary places of y before it is rounded
#: What a bias may be in those units: 2048 steps of y or more. Farther off, y is at its limit.
BIAS_LIMIT = 1 << 29


@dataclass(frozen=True, eq=False)
class Requantizer:
    """y = clip((mulhi(sum << up, multiplier) + bias) >> down), in integers.

    mulhi(a, b) is a b / 2^31, rounded; ``bias`` holds the layer's bias, y's zero point and the
    half that rounds, all times 2^down.

    Attributes:
        multipliers: int32 [n], s scale[n] / s' times a power of two.
        up: What the sum is shifted up by before, as far as it surely fits.
        down: What is shifted down by after.
    """

    multipliers: Array
    up: int
    down: int

    @classmethod
    def of(cls, factors: Array, largest: int) -> Requantizer | None:
        """For real factors and sums of at most ``largest``; None where they are out of range."""
        top = float(factors.max(initial=0.0))
        if not 0 < top < 1:
            return None
        # The largest multiplier is about 2^31, but what is too small for that stays smaller.
        exponent = min(31 - math.ceil(math.log2(top)), 31 + MOST_DOWN)
        multipliers = np.rint(factors.astype(np.float64) * 2.0**exponent)
        multipliers = np.minimum(multipliers, 2**31 - 1).astype(np.int32)
        up = min(30 - max(1, int(largest).bit_length()), 31 + MOST_DOWN - exponent)
        down = up + exponent - 31
        return cls(multipliers, up, down) if up >= 0 and down > 0 else None

    def apply(self, sums: Array, bias: Array, low: int, high: int) -> Array:
        """What the kernel computes, in numpy: sums int [m, n], bias int [n] in its units."""
        shifted = sums.astype(np.int64) << self.up
        multipliers = self.multipliers.astype(np.int64)
        even = (shifted * (multipliers & 0xFFFF)) >> 16
        product = (shifted * (multipliers >> 16) + even + 0x4000) >> 15
        limited: Array = np.clip((product + bias) >> self.down, low, high)
        return limited


def quantized(weight: Weight) -> QuantizedMatrix:
    """The weight as int8; quantised here, a scale for each output, where it is not yet."""
    if isinstance(weight, QuantizedMatrix):
        return weight
    numbers, scale = quantize_weight(weight)
    return QuantizedMatrix.of(numbers, Quantization(scale))


def pack(weight: QuantizedMatrix, *, dense: bool) -> Operands:
    """The weight as the kernel reads it.

    Args:
        weight: Blocks at most 32 high, as wide as a multiple of 4.
        dense: Whether it runs in panels of 32 outputs, with every block live.

    Returns:
        words int32 [nnzb, steps, 32]; starts int32 [nnzb], the first word of x of each block;
        indptr int32, padded with empty block rows to whole panels; scale float32, sums int32
        (of each row of W), offsets int32 (-z Σ w, static only) and multipliers int32, all padded
        to whole panels; constants float32 [6] as in packing_narrow.
    """
    ends = weight.quantization
    matrix = as_panels(weight.to_dense(), LANES) if dense else weight
    (n, _), (bh, bw) = matrix.shape, matrix.block
    high = 16 if bh <= 16 else LANES
    halves = LANES // high
    steps = -(-bw // (4 * halves))
    values = np.zeros((max(1, matrix.nnzb), high, steps * halves * 4), np.int8)
    values[: matrix.nnzb, :bh, :bw] = matrix.values
    values = values.reshape(-1, high, steps, halves, 4).transpose(0, 2, 3, 1, 4)
    words = np.ascontiguousarray(values).reshape(-1, steps, LANES, 4).view(np.int32)[..., 0]
    starts = np.zeros(len(words), np.int32)
    starts[: matrix.nnzb] = matrix.indices * (bw // 4)
    panels = -(-n // PANEL)
    rows = panels * PANEL // high
    # Blocks that are lower than a vector's part stand apart from their neighbours.
    indptr = np.full(rows + 1, matrix.indptr[-1], np.int32)
    indptr[: len(matrix.indptr)] = matrix.indptr
    row_sums = weight.to_dense().astype(np.int64).sum(axis=1)
    requantizer = requantizer_of(weight)
    multipliers = np.zeros(n, np.int32) if requantizer is None else requantizer.multipliers
    low, top = LIMITS[ends.q_dtype]
    shift = 128 if ends.q_dtype == "int8" else 0  # signed x moves up, to be unsigned
    constants = (ends.x_scale, ends.x_zero, low, top, ends.y_scale, ends.y_zero)
    return (
        ("words", words),
        ("starts", starts),
        ("indptr", indptr),
        ("scale", _padded(ends.scale)),
        ("sums", _padded(row_sums.astype(np.int32))),
        ("offsets", _padded((-(ends.x_zero + shift) * row_sums).astype(np.int32))),
        ("multipliers", _padded(multipliers)),
        ("constants", np.array(constants, np.float32)),
    )


def requantizer_of(weight: QuantizedMatrix) -> Requantizer | None:
    """How y leaves in 8 bits; None where it leaves as float32, or the factors are out of range."""
    ends = weight.quantization
    if ends.y_dtype == "float32" or ends.activation != "static":
        return None
    largest = 2 * 255 * int(np.abs(weight.to_dense().astype(np.int64)).sum(axis=1).max(initial=0))
    factors = ends.scale.astype(np.float64) * ends.x_scale / ends.y_scale
    return Requantizer.of(factors, largest)


def _padded(array: Array) -> Array:
    """[n] -> [panels * 128], zeros behind."""
    padded = np.zeros(-(-len(array) // PANEL) * PANEL, array.dtype)
    padded[: len(array)] = array
    return padded


def fits(block: tuple[int, int]) -> bool:
    """Whether blocks of that shape lie side by side in vectors."""
    return block[0] in (16, LANES) and block[1] % 4 == 0

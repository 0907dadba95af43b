"""x in the precision that a kernel multiplies, which TVM fuses into whatever makes x."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx

from bscompile.dialect.precision import PRECISIONS, TF32, TF32_HALF, TF32_KEPT


def narrowed(builder: Any, x: Any, precision: str) -> Any:
    """Emit what rounds x; x itself where it comes so.

    Args:
        builder: The relax.BlockBuilder.
        x: A tensor in float32 or another dtype.
        precision: A name of ``bscompile.dialect.precision.PRECISIONS``.
    """
    if PRECISIONS[precision] == TF32:
        return builder.emit_te(_to_tf32, x, primfunc_name_hint="round_tf32")
    if precision == str(x.ty.dtype):
        return x
    return builder.emit(relax.op.astype(x, precision))


def _to_tf32(x: Any) -> Any:
    """As ``precision.rounded``; a NaN, which is unequal to itself, stays as it is."""

    def rounded(*place: Any) -> Any:
        value = x[place]
        bits = tirx.reinterpret("uint32", value) + _word(TF32_HALF)
        near = tirx.reinterpret("float32", tirx.bitwise_and(bits, _word(TF32_KEPT)))
        return tirx.Select(value == value, near, value)  # that is the test

    return te.compute(x.shape, rounded, name="round_tf32")


def _word(bits: np.uint32) -> Any:
    return tirx.const(int(bits), "uint32")

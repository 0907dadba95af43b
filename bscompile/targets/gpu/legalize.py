"""Operators whose loops must be other than TVM's own: they lose NaN, infinities or all digits."""

from __future__ import annotations

from bscompile.targets.cpu.legalize import FAST_MATH

#: What TVM gets wrong in any language: the extremes of rows of infinities, NaN in max and erf,
#: the variance of values far from zero.
LEGALIZE = {
    name: FAST_MATH[name]
    for name in (
        *("relax.erf", "relax.max", "relax.maximum", "relax.min", "relax.minimum"),
        *("relax.nn.gelu", "relax.nn.group_norm", "relax.nn.relu"),
    )
}

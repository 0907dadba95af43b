"""Operators whose loops must be other than TVM's own: NaN and infinities stay what they are."""

from __future__ import annotations

from bscompile.targets.cpu.legalize import FAST_MATH

#: What TVM gets wrong in any language: the extremes of rows of infinities, NaN in max and erf.
LEGALIZE = {
    name: FAST_MATH[name]
    for name in (
        *("relax.erf", "relax.max", "relax.maximum", "relax.min", "relax.minimum"),
        *("relax.nn.gelu", "relax.nn.relu"),
    )
}

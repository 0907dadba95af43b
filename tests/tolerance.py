"""One place that says how close results must be."""

import ml_dtypes
import numpy as np


def assert_close(got, want, dtype, k, scale=None, what=""):
    """|got - want| <= 8 eps(dtype) sqrt(k) scale: the error of a sum of k rounded products.

    ``scale`` is the size of the sums' terms times sqrt(k); the largest wanted value by default.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, wanted {want.shape}"
    if got.size == 0:
        return
    scale = max(float(np.abs(want).max()), 1e-6) if scale is None else scale
    tolerance = 8 * float(ml_dtypes.finfo(dtype).eps) * np.sqrt(max(k, 1)) * scale
    worst = float(np.abs(got - want).max())
    assert np.isfinite(got).all() == np.isfinite(want).all(), f"{what}: not finite"
    assert worst <= tolerance, f"{what}: error {worst:.3g} over tolerance {tolerance:.3g}"

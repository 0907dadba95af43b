"""Where the windows of a convolution lie in an image with channels last."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bscompile.targets.base import Image


def positions_of(width: int, most: int) -> int:
    """Positions per tile, at most ``most``, that waste least on an output row of that width."""
    sizes = range(min(width, most), max(0, most // 2), -1)
    return min(sizes, key=lambda size: -(-width // size) * size, default=1)


def column_offsets(image: Image) -> npt.NDArray[np.int32]:
    """Int32 [channels · kh · kw]: where each column of W reads, from the window's corner."""
    (kh, kw), (dh, dw) = image.conv.kernel, image.conv.dilations
    c, p, q = np.ix_(np.arange(image.channels), np.arange(kh), np.arange(kw))
    return ((p * dh * image.width + q * dw) * image.channels + c).reshape(-1).astype(np.int32)

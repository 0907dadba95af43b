"""The layout of a weight for wgmma: steps of 64 inputs, of which only the live bands are stored.

A tile row is one to four *bands* of 64 outputs. Its steps are those of packing.pack_steps: 64
gathered inputs that are live in any of its bands. Of each step the bands in which anything is live
are kept, 64x64 numbers each, in the order in which shared memory wants them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.formats import BlockSparseMatrix
from bscompile.targets.cuda.kernels.packing import Layout, Operands, pack_steps

BAND = 64  # outputs: the M of wgmma
STEP = 64  # inputs: 128 bytes, the widest row that is swizzled
BAND_BYTES = BAND * STEP * 2


def band_layout(bands: int, group: int) -> Layout:
    """How packing cuts a weight into tile rows of that many bands."""
    return Layout(BAND * bands, group, STEP)


def pack_bands(
    weight: BlockSparseMatrix | npt.NDArray[Any], bands: int, group: int, dtype: str
) -> Operands:
    """Cut a weight into steps and keep their live bands.

    Every band of a tile row has at least one step, of zeros where it is empty: a product begins
    the sums, nothing clears them.

    Args:
        weight: [n, k], block-sparse or dense.
        bands: Of a tile row.
        group: Neighbouring inputs that are live together.
        dtype: Of the packed values.

    Returns:
        values [kept bands, 64, 64], swizzled; starts int32 [steps, 64 / group] in units of the
        layout's; live int32 [steps, 3], a step's live bands as bits, where the first of them lies
        and how many they are; indptr int32 [tile rows + 1]; order int32 [tile rows].
    """
    packed = dict(pack_steps(weight, band_layout(bands, group), dtype))
    steps = packed["values"].reshape(-1, bands, BAND, STEP)
    live = live_bands(steps, packed["indptr"])
    kept = live.sum(axis=1)
    places = np.concatenate([[0], np.cumsum(kept)[:-1]])
    mask = live @ (1 << np.arange(bands))
    return (
        ("values", swizzled(steps[live])),
        ("starts", packed["starts"]),
        ("live", np.stack([mask, places, kept], axis=1).astype(np.int32)),
        ("indptr", packed["indptr"]),
        ("order", packed["order"]),
    )


def live_bands(steps: npt.NDArray[Any], indptr: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Bool [steps, bands]: which bands of [steps, bands, 64, 64] are kept."""
    live = np.asarray((steps != 0).any(axis=(2, 3)))
    first = indptr[:-1]
    empty = ~np.logical_or.reduceat(live, first, axis=0)
    live[first] |= empty
    return live


def swizzled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[..., 64, 64] with the pieces of 16 bytes of row r in another order: piece c at c ^ (r % 8).

    So TMA would store them with its 128-byte swizzle, and so wgmma reads them without meeting a
    bank twice; done here, the copy is one run of bytes.
    """
    pieces = values.reshape(*values.shape[:-1], 8, 8)
    row = np.arange(BAND)[:, None]
    moved = pieces[..., row, np.arange(8) ^ row % 8, :]
    return np.ascontiguousarray(moved.reshape(values.shape))

"""The layout of a weight for wgmma: steps of 64 inputs, of which only the live pieces are stored.

A tile row is one to four *bands* of 64 outputs. Its steps are those of packing.pack_steps: 64
gathered inputs that are live in any of its bands, in groups. What one band has of one group is a
*piece*: 64 outputs by ``group`` inputs. Pieces in which anything is live are kept, in the order in
which shared memory wants their numbers; so bands share x, and multiply only what is theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.formats import BlockSparseMatrix
from bscompile.targets.cuda.kernels.packing import Layout, Operands, pack_steps

BAND = 64  # outputs: the M of wgmma
STEP = 64  # inputs: 128 bytes, the widest row that is swizzled


def band_layout(bands: int, group: int) -> Layout:
    """How packing cuts a weight into tile rows of that many bands."""
    return Layout(BAND * bands, group, STEP)


def pack_bands(
    weight: BlockSparseMatrix | npt.NDArray[Any], bands: int, group: int, dtype: str
) -> Operands:
    """Cut a weight into steps and keep their live pieces.

    Every band of a tile row has at least one piece, of zeros where it is empty: a product begins
    the sums, nothing clears them.

    Args:
        weight: [n, k], block-sparse or dense.
        bands: Of a tile row.
        group: Neighbouring inputs of a piece: 16, 32 or 64.
        dtype: Of the packed values.

    Returns:
        values [kept pieces, 64, group], swizzled, those of a band side by side; starts int32
        [steps, 64 / group] in units of the layout's; live int32 [steps, 3], a step's live pieces
        as bits (band by band), where the first of them lies and how many they are;
        indptr int32 [tile rows + 1]; order int32 [tile rows].
    """
    packed = dict(pack_steps(weight, band_layout(bands, group), dtype))
    steps = packed["values"].reshape(-1, bands, BAND, STEP // group, group)
    pieces = steps.transpose(0, 1, 3, 2, 4)
    live = live_pieces(pieces, packed["indptr"])
    bits = live.reshape(len(live), -1)
    kept = bits.sum(axis=1)
    places = np.concatenate([[0], np.cumsum(kept)[:-1]])
    mask = bits @ (1 << np.arange(bits.shape[1]))
    return (
        ("values", swizzled(pieces[live])),
        ("starts", packed["starts"]),
        ("live", np.stack([mask, places, kept], axis=1).astype(np.int32)),
        ("indptr", packed["indptr"]),
        ("order", packed["order"]),
    )


def live_pieces(pieces: npt.NDArray[Any], indptr: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Bool [steps, bands, groups]: which pieces of [steps, bands, groups, 64, group] are kept."""
    live = np.asarray((pieces != 0).any(axis=(3, 4)))
    first = indptr[:-1]
    empty = ~np.logical_or.reduceat(live.any(axis=2), first, axis=0)
    live[first, :, 0] |= empty
    return live


def swizzled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[..., 64, group], rows of 32, 64 or 128 bytes, with their runs of 16 bytes in another order.

    Run c of row r goes to c xor (r * row bytes / 128 mod runs). So TMA would store them with its
    swizzle for rows of that length, and so wgmma reads them without meeting a bank twice; done
    here, the copy is one run of bytes.
    """
    runs = values.shape[-1] // 8
    split = values.reshape(*values.shape[:-1], runs, 8)
    row = np.arange(BAND)[:, None]
    moved = split[..., row, np.arange(runs) ^ row * runs // 8 % runs, :]
    return np.ascontiguousarray(moved.reshape(values.shape))

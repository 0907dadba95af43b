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
_NAMES = ("values", "starts", "live", "indptr", "order")


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
        values [kept pieces, 64, group], swizzled, those of a band side by side, or W itself where
        ``pack_steps`` leaves it as it is and all pieces count as live; starts int32
        [steps, 64 / group] in units of the layout's; live int32 [steps, 3], a step's live pieces
        as bits (band by band), where the first of them lies and how many they are;
        indptr int32 [tile rows + 1]; order int32 [tile rows].
    """
    packed = dict(pack_steps(weight, band_layout(bands, group), dtype))
    if packed["values"].ndim == 2:
        assert group == STEP  # what else would leave a dense layer's steps in several pieces?
        place = bands * np.arange(len(packed["starts"]), dtype=np.int32)
        columns = (np.full_like(place, (1 << bands) - 1), place, np.full_like(place, bands))
        packed["live"] = np.stack(columns, axis=1)
        return tuple((name, packed[name]) for name in _NAMES)
    steps = packed["values"].reshape(-1, bands, BAND, STEP // group, group)
    pieces = steps.transpose(0, 1, 3, 2, 4)
    live = live_pieces(pieces, packed["indptr"])
    bits = live.reshape(len(live), -1)
    kept = bits.sum(axis=1)
    places = np.concatenate([[0], np.cumsum(kept)[:-1]])
    mask = bits @ (1 << np.arange(bits.shape[1]))
    packed["values"] = swizzled(pieces[live])
    packed["live"] = np.stack([mask, places, kept], axis=1).astype(np.int32)
    return tuple((name, packed[name]) for name in _NAMES)


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

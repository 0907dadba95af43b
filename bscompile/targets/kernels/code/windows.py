"""Where the windows of a convolution lie in an image, and where they reach over its edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from bscompile.dialect import ConvGeometry
from bscompile.targets.base import Image
from bscompile.targets.kernels.code.emit import Expr


def positions_of(width: int, most: int) -> int:
    """Positions per tile, at most ``most``, that waste least on an output row of that width."""
    sizes = range(min(width, most), max(0, most // 2), -1)
    return min(sizes, key=lambda size: -(-width // size) * size, default=1)


@dataclass(frozen=True)
class Run:
    """Columns of a window side by side that the same positions of a tile have inside the image.

    Attributes:
        first: The first of the columns.
        count: How many there are.
        positions: Those positions, from the tile's first.
    """

    first: int
    count: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class TileKind:
    """Tiles of an output row, from ``first`` to before ``last``, whose windows read alike."""

    first: int
    last: int
    runs: tuple[Run, ...]


def tile_kinds(conv: ConvGeometry, width: int, positions: int) -> tuple[TileKind, ...]:
    """How the tiles of an output row differ: those at its ends read over the image's edge.

    Args:
        conv: The convolution.
        width: Columns of the image.
        positions: Of one tile; the last tile is moved back over its neighbour.
    """
    outputs = conv.output_size(conv.kernel[0], width)[1]
    firsts = range(0, outputs, positions)
    runs = [_runs(conv, width, min(at, outputs - positions), positions) for at in firsts]
    kinds, begin = [], 0
    for alike, members in groupby(runs):
        end = begin + len(list(members))
        kinds.append(TileKind(begin, end, alike))
        begin = end
    return tuple(kinds)


def _runs(conv: ConvGeometry, width: int, first: int, positions: int) -> tuple[Run, ...]:
    left, step, apart = conv.pads[1], conv.strides[1], conv.dilations[1]
    runs: list[Run] = []
    for q in range(conv.kernel[1]):
        inside = tuple(
            r for r in range(positions) if 0 <= (first + r) * step + q * apart - left < width
        )
        before = runs[-1] if runs else None
        if before and apart == 1 and before.positions == inside:
            runs[-1] = Run(before.first, before.count + 1, inside)
        else:
            runs.append(Run(q, 1, inside))
    return tuple(run for run in runs if run.positions)


def for_kinds(
    kinds: Sequence[TileKind], tile: Expr, emit: Callable[[tuple[Run, ...]], None]
) -> None:
    """Emit the code of each kind where ``tile``, counted from the left, is of that kind."""
    if len(kinds) == 1:
        emit(kinds[0].runs)
        return
    with T.If(tile < kinds[0].last):
        with T.Then():
            emit(kinds[0].runs)
        with T.Else():
            for_kinds(kinds[1:], tile, emit)


def rows_inside(conv: ConvGeometry, height: Expr, top: Expr) -> tuple[Expr, Expr]:
    """(first, last) of a window's rows that lie in the image, the last one exclusive.

    Args:
        conv: The convolution.
        height: Rows of the image.
        top: The image's row that the window's first row reads, maybe outside.
    """
    kh, dh = T.int64(conv.kernel[0]), conv.dilations[0]
    if not conv.pads[0] and not conv.pads[2]:
        return T.int64(0), kh
    first = T.bind(T.min(kh, T.floordiv(T.max(-top, T.int64(0)) + (dh - 1), T.int64(dh))))
    rest = T.max(T.int64(height) - top + (dh - 1), T.int64(0))
    return first, T.bind(T.max(first, T.min(kh, T.floordiv(rest, T.int64(dh)))))


def span_of(conv: ConvGeometry, positions: int) -> int:
    """Columns of the image that the windows of a tile reach over."""
    return (positions - 1) * conv.strides[1] + (conv.kernel[1] - 1) * conv.dilations[1] + 1


def copied_line(image: Image, positions: int) -> int:
    """Columns from one row to the next in a copy of a tile's windows.

    As in the image, so that offsets hold in both; more where no tile fits into the image.
    """
    return max(image.width, span_of(image.conv, positions))


def column_offsets(image: Image, line: int) -> npt.NDArray[np.int32]:
    """Int32 [channels · kh · kw]: where each column of W reads, from the window's corner.

    Args:
        image: With channels last.
        line: Columns from one row of the image to the next.
    """
    (kh, kw), (dh, dw) = image.conv.kernel, image.conv.dilations
    c, p, q = np.ix_(np.arange(image.channels), np.arange(kh), np.arange(kw))
    return ((p * dh * line + q * dw) * image.channels + c).reshape(-1).astype(np.int32)

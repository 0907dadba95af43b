"""One layout of a weight for every kernel of this target: tile rows made of steps.

A *tile row* is ``rows`` outputs. Its live columns come in groups of ``group`` neighbouring inputs;
``step / group`` of them, each with a place of its own in x, make one *step*: a dense
[rows, step] piece of W against as many gathered columns of x. So any pattern becomes tensor-core
tiles, whatever block it was trained in, and what that fills in is visible in the count of steps.

A dense W whose inputs fill whole steps stays as it is, [n, k] row by row: the kernels find a step's
piece in it, and so does cuBLAS, where the model runs, without a second copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.dialect import Weight
from bscompile.dialect.precision import PRECISIONS, QuantizedMatrix, rounded
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets.base import Array, Problem
from bscompile.targets.kernels.packing_narrow import quantized_operands

Operands = tuple[tuple[str, Array], ...]


@dataclass(frozen=True)
class Layout:
    """How a weight is cut.

    Attributes:
        rows: Outputs of a tile row.
        group: Neighbouring inputs that are live together.
        step: Inputs of a step; a multiple of ``group``.
        widest: Inputs that one copy moves at most: 16 bytes of them.
    """

    rows: int
    group: int
    step: int
    widest: int = 8

    def __post_init__(self) -> None:
        if self.step % self.group:
            raise ValueError(f"groups of {self.group} do not fill a step of {self.step}")

    def unit(self, k: int) -> int:
        """Inputs that places in x are counted in: the widest copy that is always aligned."""
        return gcd(self.group, k, self.widest)


def groups_for(problem: Problem, step: int) -> int:
    """The widest group, a power of two, that cuts the problem's blocks without filling in."""
    wide = step if problem.form == "dense" else min(step, problem.block[1])
    group = 1
    while group * 2 <= min(wide, problem.k):
        group *= 2
    exact = gcd(group, problem.block[1]) if problem.form != "dense" else group
    # Narrow groups cost a copy each: under four inputs filling in is the better deal.
    return exact if exact >= min(4, group) else group


def live_share(problem: Problem, layout: Layout) -> float:
    """Share of a tile row's groups in which anything is live, if live blocks are strewn at random.

    Exact in the mean where blocks are whole tiles or cut into them.
    """
    if problem.form == "dense":
        return 1.0
    (bh, bw), touched = problem.block, 1.0
    blocks = (-(-problem.n // bh)) * (-(-problem.k // bw))
    for side, tile in ((bh, layout.rows), (bw, layout.group)):
        if tile % side == 0:
            touched *= tile // side
        elif side % tile:  # a tile reaches over the edges of blocks
            touched *= (tile + side - 1) / side
    return 1.0 - float((1.0 - problem.nnzb / max(1, blocks)) ** touched)


def expected_steps(problem: Problem, layout: Layout) -> float:
    """Steps that packing will make: as ``live_share``, and half a step to fill in each tile row."""
    tile_rows = -(-problem.n // layout.rows)
    groups = -(-problem.k // layout.group)
    live = live_share(problem, layout)
    per_row = live * groups * layout.group / layout.step
    return tile_rows * max(1.0, per_row + (0.5 if live < 1.0 else 0.0))


def pack_steps(
    weight: BlockSparseMatrix | npt.NDArray[Any], layout: Layout, dtype: str
) -> Operands:
    """Cut a weight into steps, tile rows with the most of them first.

    A group that reaches over the last input begins earlier, with zeros for the inputs that it then
    covers twice; so x is never read past its end. Every tile row has at least one step. A dense
    weight of whole steps is not cut: only the places are made.

    Args:
        weight: [n, k], block-sparse or dense.
        layout: How to cut it.
        dtype: Of the packed values, by name; those in tf32 are float32. Integers of any width are
            packed, too: whoever packs places instead of numbers learns where each number goes.

    Returns:
        values [steps, rows, step], or [n, k] where that is dense and k a multiple of step;
        starts int32 [steps, step / group] in units of ``layout.unit(k)`` inputs, indptr int32
        [tile rows + 1] (steps of each tile row) and order int32 [tile rows] (which tile row of y
        each is).
    """
    if not isinstance(weight, BlockSparseMatrix):
        if weight.shape[1] % layout.step == 0:
            return _in_place(weight, layout, dtype)
        weight = _full(weight, (layout.rows, layout.group))
    tiles = weight.reblock((layout.rows, layout.group))
    k, per_step, unit = weight.shape[1], layout.step // layout.group, layout.unit(weight.shape[1])
    groups = np.diff(tiles.indptr)
    steps = np.maximum(1, -(-groups // per_step))
    order = np.argsort(-steps, kind="stable").astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(steps[order])]).astype(np.int32)
    first = np.empty(len(order), np.int64)
    first[order] = indptr[:-1]
    # The place of each group: its tile row's first step, then one after the other.
    row = tiles.row_ids
    place = first[row] * per_step + np.arange(tiles.nnzb) - tiles.indptr[:-1][row]
    values = np.zeros((int(indptr[-1]) * per_step, layout.rows, layout.group), tiles.values.dtype)
    starts = np.zeros(len(values), np.int64)
    values[place] = tiles.values
    starts[place] = tiles.indices.astype(np.int64) * layout.group
    over = np.flatnonzero(starts + layout.group > k)
    if len(over):
        shift = int(starts[over[0]] + layout.group - k)
        values[over] = np.roll(values[over], shift, axis=2)  # what rolls around is padding: zeros
        starts[over] = k - layout.group
    steps_of = values.reshape(-1, per_step, layout.rows, layout.group).transpose(0, 2, 1, 3)
    packed = steps_of.reshape(-1, layout.rows, layout.step)
    return (
        ("values", _numbers(packed, dtype)),
        ("starts", (starts // unit).astype(np.int32).reshape(-1, per_step)),
        ("indptr", indptr),
        ("order", order),
    )


def cut_rows(operands: Operands, chunk: int) -> Operands:
    """Tile rows of more than ``chunk`` steps in pieces, whose sums are added up afterwards.

    Args:
        operands: As ``pack_steps`` makes them.
        chunk: Steps of the longest piece; those of one tile row differ by one step at most.

    Returns:
        The same, but indptr int32 [pieces + 1] counts the steps of each piece; and
        begins int32 [tile rows + 1], the pieces of each tile row.
    """
    values, starts, (_, indptr), order = operands
    steps = np.diff(indptr).astype(np.int64)
    pieces = -(-steps // chunk)
    begins = np.concatenate([[0], np.cumsum(pieces)])
    row = np.repeat(np.arange(len(steps)), pieces)
    place = np.arange(begins[-1]) - begins[row]
    bounds = np.append(indptr[row] + place * steps[row] // pieces[row], indptr[-1])
    return (
        values,
        starts,
        ("indptr", bounds.astype(np.int32)),
        order,
        ("begins", begins.astype(np.int32)),
    )


def pack_layer(problem: Problem, weight: Weight, layout: Layout, chunk: int = 0) -> Operands:
    """The operands of a layer's kernel.

    Args:
        problem: The layer.
        weight: Its weight.
        layout: How to cut it.
        chunk: Steps at which tile rows are cut in pieces; 0 leaves them whole.

    Returns:
        Those of ``pack_steps`` or ``cut_rows``; of an int8 layer also scale float32 [n],
        sums int32 [n] and constants float32 [6], see ``packing_narrow.quantized_operands``.
    """
    assert not isinstance(weight, KroneckerSum)
    if not isinstance(weight, QuantizedMatrix):
        steps = pack_steps(weight, layout, problem.dtype)
        return cut_rows(steps, chunk) if chunk else steps
    plain = BlockSparseMatrix(weight.values, weight.indices, weight.indptr, weight.shape)
    matrix = plain.to_dense() if problem.form == "dense" else plain
    steps = pack_steps(matrix, layout, problem.dtype)
    return (
        *(cut_rows(steps, chunk) if chunk else steps),
        *quantized_operands(plain, weight.quantization),
    )


def pack_coefficients(weight: KroneckerSum, layout: Layout, dtype: str) -> Operands:
    """A factorized weight in steps whose values are made from it: its blocks never lie in memory.

    Args:
        weight: W = Σᵣ Aᵣ ⊗ Bᵣ with blocks [bh, bw].
        layout: ``rows`` is a multiple of bh, ``group`` is bw.
        dtype: Of the packed numbers.

    Returns:
        coefficients [steps, r, rows / bh, step / bw], starts, indptr and order as of
        ``pack_steps``, and factors [r, bh, bw].
    """
    bh, bw = weight.block
    support, k = weight.support, weight.shape[1]
    coarse = Layout(layout.rows // bh, 1, layout.step // bw)
    parts = []
    for a in weight.a:  # every term with the places of all
        rows, columns = np.nonzero(support)
        indptr = np.concatenate([[0], np.cumsum(support.sum(axis=1))]).astype(np.int32)
        matrix = BlockSparseMatrix(
            a[rows, columns][:, None, None], columns.astype(np.int32), indptr, support.shape
        )
        merged = _merged(matrix, coarse.rows)
        parts.append(pack_steps(merged, coarse, dtype))
    _, (_, starts), *rows_of_tiles = parts[0]
    scaled = starts.astype(np.int64) * bw // layout.unit(k)
    return (
        ("coefficients", np.stack([part[0][1] for part in parts], axis=1)),
        ("starts", scaled.astype(np.int32)),
        *rows_of_tiles,
        ("factors", _numbers(weight.b, dtype)),
    )


def _merged(matrix: BlockSparseMatrix, height: int) -> BlockSparseMatrix:
    """1x1 blocks merged to height x 1, those whose numbers happen to be zero kept too."""
    rows, columns = matrix.row_ids // height, matrix.indices
    width = matrix.shape[1]
    tiles, place = np.unique(rows.astype(np.int64) * width + columns, return_inverse=True)
    values = np.zeros((len(tiles), height, 1), matrix.values.dtype)
    values[place, matrix.row_ids % height, 0] = matrix.values[:, 0, 0]
    count = -(-matrix.shape[0] // height)
    starts = np.searchsorted(tiles // width, np.arange(count + 1)).astype(np.int32)
    return BlockSparseMatrix(values, (tiles % width).astype(np.int32), starts, matrix.shape)


def _numbers(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    packed = np.ascontiguousarray(values)
    if dtype in PRECISIONS:
        return rounded(packed, PRECISIONS[dtype])
    return packed.astype(dtype, copy=False)


def _in_place(weight: npt.NDArray[Any], layout: Layout, dtype: str) -> Operands:
    """A dense matrix of whole steps as it is, with the places that its steps would have."""
    n, k = weight.shape
    tile_rows, per_row = -(-n // layout.rows), k // layout.step
    starts = np.arange(0, k, layout.group, dtype=np.int32) // np.int32(layout.unit(k))
    return (
        ("values", _numbers(weight, dtype)),
        ("starts", np.tile(starts.reshape(per_row, -1), (tile_rows, 1))),
        ("indptr", np.arange(tile_rows + 1, dtype=np.int32) * np.int32(per_row)),
        ("order", np.arange(tile_rows, dtype=np.int32)),
    )


def _full(weight: npt.NDArray[Any], block: tuple[int, int]) -> BlockSparseMatrix:
    """Every block of a dense matrix, zero or not: a layer's code must not depend on its values."""
    n, k = weight.shape
    rows, cols = -(-n // block[0]), -(-k // block[1])
    padded = np.pad(weight, ((0, rows * block[0] - n), (0, cols * block[1] - k)))
    values = padded.reshape(rows, block[0], cols, block[1]).transpose(0, 2, 1, 3)
    return BlockSparseMatrix(
        np.ascontiguousarray(values.reshape(-1, *block)),
        np.tile(np.arange(cols, dtype=np.int32), rows),
        np.arange(rows + 1, dtype=np.int32) * np.int32(cols),
        (n, k),
    )

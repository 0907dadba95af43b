"""Transposing square tiles in registers: log2(lanes) rounds of two-vector shuffles."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Buffer, Expr


def transposed(vectors: list[Expr]) -> list[Expr]:
    """[lanes] vectors of ``lanes`` elements -> the same square with rows and columns swapped.

    Round d swaps the off-diagonal quarters of every 2d x 2d square.
    """
    lanes = len(vectors)
    vectors = [T.bind(v) for v in vectors]
    distance = 1
    while distance < lanes:
        low = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
        high = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
        for i in range(lanes):
            if not i & distance:
                pair = [vectors[i], vectors[i + distance]]
                vectors[i] = _shuffle(pair, low)
                vectors[i + distance] = _shuffle(pair, high)
        distance *= 2
    return vectors


def _shuffle(pair: list[Expr], order: list[int]) -> Expr:
    return T.bind(tirx.Shuffle(pair, [tirx.IntImm("int32", lane) for lane in order]))


def transpose_rows(x: Buffer, row: Expr, rows: int, lanes: int, to: Buffer, *place: Expr) -> None:
    """to[*place, c, r] = x[row + r, c] for all columns c and r < rows, a multiple of ``lanes``."""
    columns = int(x.shape[1])
    if columns < lanes:
        with T.serial(0, columns) as c, T.serial(0, rows) as r, emit.opaque():
            T.buffer_store(to, x[row + r, c], [*place, c, r])
        return
    with T.serial(0, T.int64(-(-columns // lanes))) as group, emit.opaque():
        c = T.bind(T.min(group * lanes, T.int64(columns - lanes)))
        for at in range(0, rows, lanes):
            vectors = [emit.load(x, row + at + r, c, lanes=lanes) for r in range(lanes)]
            for i, vector in enumerate(transposed(vectors)):
                emit.store(to, vector, *place, c + i, at, lanes=lanes)

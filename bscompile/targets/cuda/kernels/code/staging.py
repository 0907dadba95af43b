"""How a warpgroup's sums reach y: through shared memory, so that rows are written in whole pieces.

A thread's sums of wgmma lie in eight outputs' distance of each other. Sixteen rows at a time are
written to a staging place, met by the group's 128 threads, and read back as four neighbouring
outputs a thread; then comes the epilogue, whose tensors are read in the same pieces as y is
written. Two places in turn save the second meeting. Where blocks share a tile, each stages all of
its sums, and reads those of the others too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cuda.kernels.band_shape import STAGED_PITCH, STAGED_ROWS, BandShape
from bscompile.targets.cuda.kernels.bands import BAND
from bscompile.targets.cuda.kernels.code import hopper
from bscompile.targets.cuda.kernels.code.signature import Arguments

_VECTOR = 4
_LANES = 8  # threads that share a row


class Staging:
    """The staging places of a thread block.

    Args:
        pool: Where shared memory is taken from.
        shape: How the kernel is cut.
    """

    def __init__(self, pool: Any, shape: BandShape) -> None:
        self._split, self._chunks = shape.split, shape.columns // STAGED_ROWS
        places = (shape.workers, shape.staged, STAGED_ROWS, STAGED_PITCH)
        self._held = pool.alloc(places, "float32", align=16)

    def store(
        self, args: Arguments, sums: Any, worker: Any, thread: Any, row: Any, column: Any
    ) -> None:
        """Emit y[row ..., column ... column + 63] = epilogue(sums) of one warpgroup.

        Args:
            args: The kernel's.
            sums: The thread's sums, as wgmma leaves them.
            worker: Which warpgroup.
            thread: Of the warpgroups that store.
            row: Its first row of x; rows that are not there are left out.
            column: Its first output; as are outputs.
        """
        with T.serial(0, self._chunks) as chunk:
            place = T.bind(T.bitwise_and(chunk, 1))
            for fixed in range(self._chunks):  # registers have no index: one branch for each
                with T.If(chunk == fixed), T.Then():
                    self._write(sums, worker, thread, place, fixed)
            hopper.call("group_sync", worker + 1)
            self._finish(args, worker, thread, place, row + chunk * STAGED_ROWS, column)

    def keep(self, sums: Any, worker: Any, thread: Any, any_product: Any) -> None:
        """Emit what stages all sums of a warpgroup, for the blocks that share the tile.

        Args:
            sums: As in ``store``.
            worker: As in ``store``.
            thread: As in ``store``.
            any_product: 0 where this block had none for the band: its sums then hold nothing.
        """
        for chunk in range(self._chunks):
            self._write(sums, worker, thread, chunk, chunk, any_product)

    def add(
        self, args: Arguments, worker: Any, thread: Any, row: Any, column: Any, rank: Any
    ) -> None:
        """Emit y = epilogue(the blocks' sums), each block some rows of it; as ``store``.

        ``rank`` is this block's among those that share the tile; all have kept their sums.
        """
        with T.serial(0, T.truncdiv(self._chunks - 1 - rank + self._split, self._split)) as turn:
            chunk = T.bind(turn * self._split + rank)
            self._finish(args, worker, thread, chunk, row + chunk * STAGED_ROWS, column)

    def _write(
        self, sums: Any, worker: Any, thread: Any, place: Any, chunk: int, kept: Any = None
    ) -> None:
        """Sum 4 i + 2 h + e of a lane is output lane / 4 + 8 h, row 8 i + 2 (lane % 4) + e."""
        lane = T.floormod(thread, 32)
        output = T.floordiv(T.floormod(thread, 128), 32) * 16 + T.floordiv(lane, 4)
        for eight in range(STAGED_ROWS // 8):
            for half in range(2):
                for e in range(2):
                    value = sums[(chunk * (STAGED_ROWS // 8) + eight) * 4 + half * 2 + e]
                    if kept is not None:
                        value = T.Select(kept != 0, value, T.float32(0))
                    row = eight * 8 + T.floormod(lane, 4) * 2 + e
                    T.buffer_store(self._held, value, [worker, place, row, output + 8 * half])

    def _finish(
        self, args: Arguments, worker: Any, thread: Any, place: Any, row: Any, column: Any
    ) -> None:
        n = int(args.y.shape[1])
        vector = _VECTOR if n % _VECTOR == 0 else 1
        local = T.bind(T.floordiv(T.floormod(thread, 128), _LANES))
        at = T.bind(T.cast(row + local, "int64"))
        for again in range(BAND // (_LANES * _VECTOR)):
            first = T.bind(again * _LANES * _VECTOR + T.floormod(thread, _LANES) * _VECTOR)
            total = self._total(worker, place, local, first)
            for piece in range(0, _VECTOR, vector):
                inside = T.And(at < args.m, column + first + piece < n)
                with T.If(inside), T.Then(), T.vectorized(vector) as e:
                    out = column + first + piece + e
                    T.buffer_store(args.y, args.finish(total(piece + e), at, out), [at, out])

    def _total(self, worker: Any, place: Any, row: Any, first: Any) -> Callable[[Any], Any]:
        """The sum of an output by its distance from ``first``; of ``_VECTOR`` of them."""
        if self._split == 1:
            return lambda other: self._held[worker, place, row, first + other]
        total, part = (T.alloc_buffer((_VECTOR,), "float32", scope="local") for _ in range(2))
        for rank in range(self._split):
            into = part if rank else total
            at = self._held.ptr_to([worker, place, row, first])
            hopper.call("load_from", T.address_of(into[0]), at, rank)
            if rank:
                for e in range(_VECTOR):
                    T.buffer_store(total, total[e] + part[e], [e])
        return lambda other: total[other]

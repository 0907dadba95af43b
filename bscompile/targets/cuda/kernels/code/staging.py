"""How a warpgroup's sums reach y: through shared memory, so that rows are written in whole pieces.

A thread's sums of wgmma lie in eight outputs' distance of each other. Sixteen rows at a time are
written to a staging place, met by the group's 128 threads, and read back as four neighbouring
outputs a thread; then comes the epilogue, whose tensors are read in the same pieces as y is
written. Two places in turn save the second meeting.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cuda.kernels.band_shape import STAGED_PITCH, STAGED_ROWS
from bscompile.targets.cuda.kernels.bands import BAND
from bscompile.targets.cuda.kernels.code import hopper
from bscompile.targets.cuda.kernels.code.signature import Arguments

_VECTOR = 4
_LANES = 8  # threads that share a row


class Staging:
    """The staging places of a thread block.

    Args:
        pool: Where shared memory is taken from.
        workers: Warpgroups that store.
        columns: Rows of x of each, a multiple of 16.
    """

    def __init__(self, pool: Any, workers: int, columns: int) -> None:
        self._held = pool.alloc((workers, 2, STAGED_ROWS, STAGED_PITCH), "float32", align=16)
        self._chunks = columns // STAGED_ROWS

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

    def _write(self, sums: Any, worker: Any, thread: Any, place: Any, chunk: int) -> None:
        """Sum 4 i + 2 h + e of a lane is output lane / 4 + 8 h, row 8 i + 2 (lane % 4) + e."""
        lane = T.floormod(thread, 32)
        output = T.floordiv(T.floormod(thread, 128), 32) * 16 + T.floordiv(lane, 4)
        for eight in range(STAGED_ROWS // 8):
            for half in range(2):
                for e in range(2):
                    value = sums[(chunk * (STAGED_ROWS // 8) + eight) * 4 + half * 2 + e]
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
            for piece in range(0, _VECTOR, vector):
                inside = T.And(at < args.m, column + first + piece < n)
                with T.If(inside), T.Then(), T.vectorized(vector) as e:
                    out = column + first + piece + e
                    total = self._held[worker, place, local, first + piece + e]
                    T.buffer_store(args.y, args.finish(total, at, out), [at, out])

"""Attention's tiles in float32: four threads share a query, each with every fourth key and output.

A thread has ``_OWN`` queries, so that what it reads of K and V serves as many products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

_SHARE = 4  # threads of one query
_OWN = 2
_ROWS = 128 // _SHARE  # queries that the threads of a block take side by side
_KEYS = 32


class CudaCores:
    """See attention.Cores; the constructor takes d, e, the scale and ``float32``."""

    held, pad, keys, queries = "float32", 1, _KEYS, _OWN * _ROWS

    def __init__(
        self, inner: int, outer: int, scale: float, _: str, *, masked: bool, drop_nan: bool
    ) -> None:
        self.inner, self.outer, self._scale = inner, outer, scale
        self._drop_nan = drop_nan
        self._outputs = -(-outer // _SHARE)  # of one thread
        self.shared_bytes = 4 * self.queries * (_KEYS + 1)

    def begin(self) -> None:
        """Allocate and clear sums."""
        self._sums = T.sblock_alloc_buffer((_OWN, self._outputs), "float32", scope="local")
        self._scores = T.sblock_alloc_buffer((_OWN, _KEYS // _SHARE), "float32", scope="local")
        self._top, self._total, self._shrink, self._base = (
            T.sblock_alloc_buffer((_OWN,), "float32", scope="local") for _ in range(4)
        )
        size = self.queries * (_KEYS + 1)
        self._powers = T.sblock_alloc_buffer((size,), "float32", scope="shared.dyn")
        with T.unroll(_OWN) as own:
            T.buffer_store(self._top, T.float32(-math.inf), [own])
            T.buffer_store(self._total, T.float32(0), [own])
            with T.unroll(self._outputs) as i:
                T.buffer_store(self._sums, T.float32(0), [own, i])

    def step(self, tiles: tuple[Any, Any, Any], mask: Any, left: Any, thread: Any) -> None:
        """Multiply one tile of keys; ``left`` of them are there."""
        qs, ks, vs = tiles
        line, part = self._mine(thread)
        scores, sums = self._scores, self._sums
        with T.unroll(_OWN) as own, T.unroll(_KEYS // _SHARE) as j:
            T.buffer_store(scores, T.float32(0), [own, j])
        with T.serial(self.inner) as d, T.unroll(_KEYS // _SHARE) as j, T.unroll(_OWN) as own:
            wide = self.inner + self.pad
            product = qs[(line + own * _ROWS) * wide + d] * ks[(part + j * _SHARE) * wide + d]
            T.buffer_store(scores, scores[own, j] + product, [own, j])
        for own in range(_OWN):
            row = line + own * _ROWS
            self._soften(own, row, part, mask, left)
        T.evaluate(T.tvm_storage_sync("shared.dyn"))
        with T.unroll(self._outputs) as i, T.unroll(_OWN) as own:
            T.buffer_store(sums, sums[own, i] * self._shrink[own], [own, i])
        with T.serial(_KEYS) as t, T.unroll(self._outputs) as i, T.unroll(_OWN) as own:
            column = T.min(part + i * _SHARE, self.outer - 1)
            power = self._powers[(line + own * _ROWS) * (_KEYS + 1) + t]
            product = power * vs[t * (self.outer + self.pad) + column]
            T.buffer_store(sums, sums[own, i] + product, [own, i])

    def _soften(self, own: int, row: Any, part: Any, mask: Any, left: Any) -> None:
        """Scores -> powers in shared memory; what came before shrinks as the maximum rises."""
        scores, top = self._scores, self._top
        base, shrink = self._base, self._shrink
        T.buffer_store(shrink, top[own], [own])
        with T.unroll(_KEYS // _SHARE) as j:
            key = part + j * _SHARE
            score = scores[own, j] * T.float32(self._scale)
            if mask is not None:
                score = score + mask[row * (_KEYS + 1) + key]
            score = T.Select(key < left, score, T.float32(-math.inf))
            T.buffer_store(scores, score, [own, j])
            T.buffer_store(top, T.max(top[own], scores[own, j]), [own])
        self._exchange(top, own, T.max)
        # Where all keys so far are masked there is no maximum to take away.
        nothing = top[own] == T.float32(-math.inf)
        T.buffer_store(base, T.Select(nothing, T.float32(0), top[own]), [own])
        T.buffer_store(shrink, T.exp(shrink[own] - base[own]), [own])
        T.buffer_store(self._total, self._total[own] * shrink[own], [own])
        with T.unroll(_KEYS // _SHARE) as j:
            T.buffer_store(scores, T.exp(scores[own, j] - base[own]), [own, j])
            T.buffer_store(self._powers, scores[own, j], [row * (_KEYS + 1) + part + j * _SHARE])
            T.buffer_store(self._total, self._total[own] + scores[own, j], [own])

    def finish(self, thread: Any, store: Callable[[Any, Any, Any], None]) -> None:
        """Give store(query of the tile, e, value) every result of this thread."""
        line, part = self._mine(thread)
        for own in range(_OWN):
            self._exchange(self._total, own, lambda a, b: a + b)
            for i in range(self._outputs):
                value = share(self._sums[own, i], self._total[own], self._drop_nan)
                store(line + own * _ROWS, part + i * _SHARE, value)

    @staticmethod
    def _mine(thread: Any) -> tuple[Any, Any]:
        return T.floordiv(thread, _SHARE), T.floormod(thread, _SHARE)

    @staticmethod
    def _exchange(buffer: Any, own: int, combine: Callable[[Any, Any], Any]) -> None:
        for distance in (1, 2):
            other = T.tvm_warp_shuffle_xor(T.tvm_warp_activemask(), buffer[own], distance, 32, 32)
            T.buffer_store(buffer, combine(buffer[own], other), [own])


def share(whole: Any, total: Any, drop_nan: bool) -> Any:
    """An output: the weighted sum over the sum of weights, or 0 where that is none and told to."""
    if not drop_nan:
        return whole / total
    return T.Select(total > T.float32(0), whole / total, T.float32(0))

"""softmax(scale · Q Kᵀ + mask) V in one launch, the scores never leaving the thread block.

Axes: b batch, h head, s query, t key, d inner, e outer; each operand in any storage order. A
thread block takes a tile of queries of one head and walks the keys tile by tile, with the largest
score so far and the sum of powers for each query (online softmax). What a tile multiplies lies in
shared memory; how it is multiplied is the business of the two kinds of cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cpu.code.tensors import Argument, Size, Tensor, function
from bscompile.targets.cuda.kernels.code.attention_cuda_cores import CudaCores
from bscompile.targets.cuda.kernels.code.attention_tensor_cores import TensorCores

THREADS = 128


class Cores(Protocol):
    """How a tile of queries meets a tile of keys.

    Attributes:
        queries: Of a tile.
        keys: Of a tile.
        held: dtype of the tiles in shared memory.
        inner: d, padded as the tiles hold it.
        outer: e, likewise.
        pad: Elements after each row of a tile.
        shared_bytes: That it takes itself.
    """

    queries: int
    keys: int
    held: str
    inner: int
    outer: int
    pad: int
    shared_bytes: int

    def begin(self) -> None:
        """Allocate and clear sums."""

    def step(self, tiles: tuple[Any, Any, Any], mask: Any, left: Any, thread: Any) -> None:
        """Multiply one tile of keys; ``left`` of them are there."""

    def finish(self, thread: Any, store: Callable[[Any, Any, Any], None]) -> None:
        """Give store(query of the tile, e, value) every result of this thread."""


def generate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    *,
    scale: float,
    drop_nan: bool = False,
    multiplied: str,
    shared_bytes: int,
) -> Any:
    """The scheduled function (q, k, v, [mask,] out); None where the tiles do not fit.

    Args:
        q: Axes b h s d in any order.
        k: Axes b h t d.
        v: Axes b h t e.
        mask: Axes b h s t; an axis of size one is shared. None adds nothing.
        out: Axes b h s e.
        scale: Factor of Q Kᵀ.
        drop_nan: Weights that are NaN count as 0: one makes the whole row's sum NaN, or 0 where
            every key is masked, and the row's result is 0 then.
        multiplied: ``float32`` for CUDA cores, ``float16`` or ``bfloat16`` for tensor cores.
        shared_bytes: That a thread block may use.
    """
    sides = int(q.size("d")), int(v.size("e"))
    kind = CudaCores if multiplied == "float32" else TensorCores
    cores = kind(*sides, scale, multiplied, masked=mask is not None, drop_nan=drop_nan)
    size = 4 if cores.held == "float32" else 2
    rows = (cores.queries + cores.keys) * (cores.inner + cores.pad)
    rows += cores.keys * (cores.outer + cores.pad)
    masked = 4 * cores.queries * (cores.keys + 1) if mask is not None else 0
    if size * rows + masked + cores.shared_bytes > shared_bytes:
        return None
    tensors = [t for t in (q, k, v, mask, out) if t is not None]
    return function(
        "attention",
        tensors,
        lambda arguments, length: _body(arguments, length, cores, mask is not None),
    )


def _body(
    arguments: list[Argument], length: Callable[[Size], Any], cores: Cores, masked: bool
) -> None:
    q, k, v, *rest = arguments
    out = rest[-1]
    batch, heads, queries = (length(q.tensor.size(a)) for a in "bhs")
    keys = length(k.tensor.size("t"))
    with (
        T.thread_binding(0, _up(queries, cores.queries), "blockIdx.x") as tile,
        T.thread_binding(0, batch * heads, "blockIdx.y") as item,
        T.thread_binding(0, THREADS, "threadIdx.x") as thread,
        T.sblock("attention"),
    ):
        T.reads()
        T.writes()
        place = {"b": T.bind(T.floordiv(item, heads)), "h": T.bind(T.floormod(item, heads))}
        first = T.bind(T.cast(tile, "int64") * cores.queries)
        inner, outer = cores.inner + cores.pad, cores.outer + cores.pad
        # Flat: of a matrix TVM would cut away the padding that nobody writes.
        qs, ks, vs = (
            T.sblock_alloc_buffer((size,), cores.held, scope="shared.dyn")
            for size in (cores.queries * inner, cores.keys * inner, cores.keys * outer)
        )
        ms = None
        if masked:
            size = cores.queries * (cores.keys + 1)
            ms = T.sblock_alloc_buffer((size,), "float32", scope="shared.dyn")
        cores.begin()
        _stage(qs, q, place, ("s", first, queries), ("d", cores.inner), cores.pad, thread)
        with T.serial(0, T.cast(_up(keys, cores.keys), "int64")) as turn:
            begin = T.bind(turn * cores.keys)
            T.evaluate(T.tvm_storage_sync("shared.dyn"))  # all have done with the tiles before
            _stage(ks, k, place, ("t", begin, keys), ("d", cores.inner), cores.pad, thread)
            _stage(vs, v, place, ("t", begin, keys), ("e", cores.outer), cores.pad, thread)
            if ms is not None:
                ends = (first, queries), (begin, keys)
                _stage_mask(ms, rest[0], place, *ends, cores.keys, thread)
            T.evaluate(T.tvm_storage_sync("shared.dyn"))
            cores.step((qs, ks, vs), ms, T.bind(T.cast(keys - begin, "int32")), thread)

        def store(row: Any, e: Any, value: Any) -> None:
            with T.If(T.And(first + row < queries, e < int(v.tensor.size("e")))), T.Then():
                out.store(value, **place, s=first + row, e=e)

        cores.finish(thread, store)


def _up(length: Any, step: int) -> Any:
    if isinstance(length, int):
        return -(-length // step)
    return T.floordiv(length + (step - 1), T.int64(step))


def _stage(
    tile: Any,
    source: Argument,
    place: dict[str, Any],
    along: tuple[str, Any, Any],
    across: tuple[str, int],
    pad: int,
    thread: Any,
) -> None:
    """Rows of an operand into shared memory, zeros beyond its end.

    Args:
        tile: Its flat buffer.
        source: The operand.
        place: Batch and head.
        along: Axis of the rows, the first of them, and how many the operand has.
        across: Axis of the columns, and how many the tile has.
        pad: Elements after each row of the tile.
        thread: Of the thread block.
    """
    (axis, first, length), (other, width), dtype = along, across, str(tile.dtype)
    rows, real = int(tile.shape[0]) // (width + pad), int(source.tensor.size(other))
    with T.serial(0, -(-rows * width // THREADS)) as turn:
        flat = T.bind(turn * THREADS + thread)
        row, column = T.bind(T.floordiv(flat, width)), T.bind(T.floormod(flat, width))
        at = [row * (width + pad) + column]
        with T.If(flat < rows * width), T.Then():
            T.buffer_store(tile, T.cast(T.float32(0), dtype), at)
            with T.If(T.And(first + row < length, column < real)), T.Then():
                where = {axis: first + row, other: T.cast(column, "int64")}
                T.buffer_store(tile, T.cast(source.load(**place, **where), dtype), at)


def _stage_mask(
    tile: Any,
    mask: Argument,
    place: dict[str, Any],
    queries: tuple[Any, Any],
    keys: tuple[Any, Any],
    width: int,
    thread: Any,
) -> None:
    with T.serial(0, int(tile.shape[0]) // (width + 1) * width // THREADS) as turn:
        flat = T.bind(turn * THREADS + thread)
        row, column = T.bind(T.floordiv(flat, width)), T.bind(T.floormod(flat, width))
        s, t, at = queries[0] + row, keys[0] + column, [row * (width + 1) + column]
        T.buffer_store(tile, T.float32(0), at)
        with T.If(T.And(s < queries[1], t < keys[1])), T.Then():
            T.buffer_store(tile, mask.load(**place, s=s, t=t), at)

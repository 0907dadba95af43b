"""y = x Wᵀ over bands on Hopper: TMA fills a ring, mbarriers tell of it, wgmma empties it.

A tile of y is ``rows`` rows by ``bands`` times 64 outputs. One thread walks the tile's steps and
has the TMA unit bring, for each, 64 gathered columns of x and the pieces of W that are live in it.
Each of the other warpgroups owns one band (and, with ``parts``, a share of the rows) and multiplies
the pieces that are live in it; so all bands share the tile of x. The band is the M of wgmma and
the rows are its N: a band's 64 outputs fill it whatever the trained block, and up to 256 rows make
the most of each read of W from shared memory.

``cluster`` blocks work side by side on neighbouring rows: each brings a part of the pieces and
multicasts it to the others. Or ``split`` blocks share the steps of one tile: each stages its sums,
and all add up what they read from each other. Blocks stay (a persistent grid) and take tiles in
turn, the longest first, while the ring goes on filling across tiles.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import HardwareSpec, Problem
from bscompile.targets.cuda.kernels.band_shape import GROUP, BandShape
from bscompile.targets.cuda.kernels.bands import BAND, STEP
from bscompile.targets.cuda.kernels.code import hopper
from bscompile.targets.cuda.kernels.code.signature import (
    Arguments,
    Operands,
    generate,
    lies_plain,
    tiles,
)
from bscompile.targets.cuda.kernels.code.staging import Staging

_SLICE = 16  # inputs that one wgmma takes


def kernel(
    problem: Problem, operands: Operands, shape: BandShape, unit: int, hardware: HardwareSpec
) -> Any:
    """The PrimFunc.

    Args:
        problem: The layer.
        operands: As bands.pack_bands makes them.
        shape: How the kernel is cut.
        unit: Inputs that the operands' starts are counted in.
        hardware: How many processors there are, and how much a block may use.
    """
    return generate(
        "block_sparse_bands",
        problem,
        problem.dtype,
        operands,
        lambda args: _Body(args, problem, shape, unit, hardware).emit(),
        s_tir=False,
    )


class _Body:
    """One kernel's statements; what they share is set up by ``emit``, in this order."""

    def __init__(
        self,
        args: Arguments,
        problem: Problem,
        shape: BandShape,
        unit: int,
        hardware: HardwareSpec,
    ) -> None:
        self.args, self.problem, self.shape, self.unit = args, problem, shape, unit
        self.multiplied, self.resident = problem.dtype, shape.resident(hardware)
        self.clusters = self.resident * shape.processors(hardware) // shape.blocks
        self.values, self.starts, self.live, self.indptr, self.order = args.operands

    def emit(self) -> None:
        shape, problem = self.shape, self.problem
        self._x_map = self._encode_map("x_map", self.args.x, self.args.m, shape.rows)
        self._w_map = None
        if lies_plain(self.values):  # then TMA swizzles what else was swizzled when it was packed
            part = shape.bands * BAND // shape.cluster
            self._w_map = self._encode_map("w_map", self.values, problem.n, part)
        T.device_entry()
        with T.attr({"tirx.launch_bounds_min_blocks_per_sm": self.resident}):
            self._on_device()

    def _on_device(self) -> None:
        shape = self.shape
        tile_rows = -(-self.problem.n // (BAND * shape.bands))
        self._tiles = T.cast(tiles(self.args.m, self._span()), "int32")
        items = tile_rows * self._tiles
        clusters = T.min(items, self.clusters)
        block = T.cta_id([clusters * shape.blocks])
        self._rank = T.cta_id_in_cluster([shape.blocks]) if shape.blocks > 1 else 0
        thread = T.thread_id([shape.threads])
        self._reserve()
        with T.If(thread == 0), T.Then():
            hopper.call("aligned", self._x.ptr_to([0, 0]))
            for tile_map in (self._x_map, self._w_map):
                if tile_map is not None:
                    hopper.call("prefetch_map", T.address_of(tile_map))
            with T.unroll(shape.stages) as stage:
                hopper.call("barrier_init", self._full.ptr_to([stage]), 1)
                arrivals = 4 * shape.workers * shape.cluster
                hopper.call("barrier_init", self._empty.ptr_to([stage]), arrivals)
            hopper.call("barriers_ready")
        hopper.call("cluster_sync" if shape.cluster > 1 else "block_sync")
        registers = shape.registers(self.resident)
        first = T.bind(T.floordiv(block, shape.blocks))
        turns = T.bind(T.truncdiv(items - first + (clusters - 1), clusters))
        with T.If(thread < GROUP):
            with T.Then():
                if registers:
                    hopper.set_registers(registers[0], more=False)
                with T.If(thread == 0):
                    with T.Then():
                        self._load(first, turns, clusters)
                    if shape.split > 1:
                        with T.Else(), T.serial(0, turns):
                            self._meet(2)
            with T.Else():
                if registers:
                    hopper.set_registers(registers[1], more=True)
                self._multiply(T.bind(thread - GROUP), first, turns, clusters)
        if shape.cluster > 1:  # nobody leaves while others may still write here
            hopper.call("cluster_sync")

    def _span(self) -> int:
        """Rows of x that a cluster takes together."""
        return self.shape.rows * self.shape.cluster

    def _encode_map(self, name: str, matrix: Any, height: Any, rows: int) -> Any:
        """On the host: how the TMA unit sees a matrix [height, k], of which it brings ``rows``.

        What lies outside of it becomes zeros.
        """
        group, k = self.shape.group, self.problem.k
        tile_map = T.Var(name, ty=T.handle("tensormap").ty)
        T.Bind(T.tvm_stack_alloca("tensormap", 1), var=tile_map)
        encode = T.tensormap_encode_tiled(
            *(tile_map, matrix.data, k, height, 2 * k, group, rows, 1, 1),
            descriptor_dtype=self.multiplied,
            rank=2,
            swizzle={64: 3, 32: 2, 16: 1}[group],
            l2_promotion=2,
        )
        T.evaluate(encode)
        return tile_map

    def _reserve(self) -> None:
        """Shared memory: the ring first, since swizzled tiles must begin at 1024 bytes."""
        shape, pool = self.shape, T.SMEMPool()
        self._x = pool.alloc((shape.stages, shape.rows * STEP), self.multiplied, align=1024)
        self._w = pool.alloc((shape.stages, shape.bands * BAND * STEP), self.multiplied, align=1024)
        self._staging = Staging(pool, shape)
        self._full = pool.alloc((shape.stages,), "uint64", align=8)
        self._empty = pool.alloc((shape.stages,), "uint64", align=8)
        pool.commit()
        self._turn = T.alloc_buffer((1,), "int32", scope="local")  # steps since the launch

    def _tile(self, turn: Any, first: Any, clusters: Any) -> tuple[Any, Any, Any, Any]:
        """(packed tile row, first row of x, first step, steps) of a turn, for this block."""
        item = T.bind(first + turn * clusters)
        packed = T.bind(T.truncdiv(item, self._tiles))
        at = T.truncmod(item, self._tiles) * self._span()
        begin = T.bind(self.indptr[packed])
        count = T.bind(self.indptr[packed + 1] - begin)
        if self.shape.split == 1:
            return packed, T.bind(at + self._rank * self.shape.rows), begin, count
        mine, next_one = (
            T.bind(T.truncdiv(count * rank, self.shape.split))
            for rank in (self._rank, self._rank + 1)
        )
        return packed, T.bind(at), T.bind(begin + mine), T.bind(next_one - mine)

    def _load(self, first: Any, turns: Any, clusters: Any) -> None:
        shape = self.shape
        T.buffer_store(self._turn, 0, [0])
        with T.serial(0, turns) as turn:
            packed, row, begin, count = self._tile(turn, first, clusters)
            with T.serial(0, count) as j:
                step = T.bind(begin + j)
                stage, lap = self._place()
                pieces = T.bind(self.live[step, 2])
                hopper.call("wait", self._empty.ptr_to([stage]), lap ^ 1)
                full = self._full.ptr_to([stage])
                hopper.call("expect", full, shape.x_bytes + pieces * shape.piece_bytes)
                for piece in range(STEP // shape.group):
                    to = self._x.ptr_to([stage, piece * shape.rows * shape.group])
                    column = self.starts[step, piece] * self.unit
                    hopper.call("load_tile", to, T.address_of(self._x_map), column, row, full)
                if self._w_map is None:
                    self._load_pieces(stage, self.live[step, 1], pieces, full)
                else:
                    self._load_bands(stage, packed, self.starts[step, 0] * self.unit, full)
                T.buffer_store(self._turn, self._turn[0] + 1, [0])
            self._meet(2)

    def _load_pieces(self, stage: Any, place: Any, pieces: Any, full: Any) -> None:
        """This block's part of a step's pieces, to every block on neighbouring rows."""
        shape = self.shape
        if shape.cluster == 1:
            to = self._w.ptr_to([stage, 0])
            come_from = T.address_of(self.values[place, 0, 0])
            hopper.call("load_bytes", to, come_from, pieces * shape.piece_bytes, full)
            return
        rows = T.bind(pieces * (BAND // shape.cluster))
        before = T.bind(self._rank * rows)
        to = self._w.ptr_to([stage, before * shape.group])
        come_from = T.address_of(
            self.values[place + T.truncdiv(before, BAND), T.truncmod(before, BAND), 0]
        )
        everyone = (1 << shape.cluster) - 1
        part = rows * (shape.group * 2)
        hopper.call("load_bytes_everywhere", to, come_from, part, full, everyone)

    def _load_bands(self, stage: Any, packed: Any, column: Any, full: Any) -> None:
        """The same of a W that lies as it is: this block's part of the rows of all bands."""
        shape, w_map = self.shape, T.address_of(self._w_map)
        part = shape.bands * BAND // shape.cluster
        before = T.bind(self._rank * part if shape.cluster > 1 else T.int32(0))
        row = packed * (shape.bands * BAND) + before
        to = self._w.ptr_to([stage, before * STEP])
        if shape.cluster == 1:
            hopper.call("load_tile", to, w_map, column, row, full)
        else:
            everyone = (1 << shape.cluster) - 1
            hopper.call("load_tile_everywhere", to, w_map, column, row, full, everyone)

    def _meet(self, times: int) -> None:
        """Where blocks share a tile: all of their threads, when sums are staged and when read."""
        if self.shape.split > 1:
            for _ in range(times):
                hopper.call("cluster_sync")

    def _place(self) -> tuple[Any, Any]:
        """(stage, parity of the lap) of the ring's present turn."""
        stage = T.bind(T.floormod(self._turn[0], self.shape.stages))
        lap = T.bitwise_and(T.floordiv(self._turn[0], self.shape.stages), 1)
        return stage, T.bind(lap)

    def _multiply(self, thread: Any, first: Any, turns: Any, clusters: Any) -> None:
        shape = self.shape
        worker = T.bind(hopper.same_in_warp(T.floordiv(thread, GROUP)))
        band, part = T.floormod(worker, shape.bands), T.floordiv(worker, shape.bands)
        sums = T.alloc_buffer((shape.columns // 2,), "float32", scope="local")
        keep = T.alloc_buffer((1,), "int32", scope="local")
        busy = T.alloc_buffer((1,), "int32", scope="local")  # stage still being read, or -1
        T.buffer_store(self._turn, 0, [0])
        with T.serial(0, turns) as turn:
            packed, row, begin, count = self._tile(turn, first, clusters)
            T.buffer_store(keep, 0, [0])
            T.buffer_store(busy, -1, [0])
            with T.serial(0, count) as j:
                stage, lap = self._place()
                hopper.call("wait", self._full.ptr_to([stage]), lap)
                live = T.bind(self.live[begin + j, 0])
                mine = T.bind(self._of_band(live, band))
                with T.If(mine != 0):
                    with T.Then():
                        self._product(sums, keep, stage, self._before(live, band), mine, part)
                        hopper.wgmma_wait(1)
                        self._release_busy(thread, busy)
                        T.buffer_store(busy, stage, [0])
                    with T.Else():  # a stage held while others go by would stop the ring
                        hopper.wgmma_wait(0)
                        self._release_busy(thread, busy)
                        self._release(thread, stage)
                        T.buffer_store(busy, -1, [0])
                T.buffer_store(self._turn, self._turn[0] + 1, [0])
            hopper.wgmma_wait(0)
            self._release_busy(thread, busy)
            row = T.bind(row + part * shape.columns)
            column = T.bind((self.order[packed] * shape.bands + band) * BAND)
            if shape.split == 1:
                self._staging.store(self.args, sums, worker, thread, row, column)
            else:
                self._staging.keep(sums, worker, thread, keep[0])
                self._meet(1)
                self._staging.add(self.args, worker, thread, row, column, self._rank)
                self._meet(1)

    def _of_band(self, live: Any, band: Any) -> Any:
        """The bits of one band."""
        pieces = STEP // self.shape.group
        return T.bitwise_and(T.shift_right(live, band * pieces), (1 << pieces) - 1)

    def _before(self, live: Any, band: Any) -> Any:
        """Pieces of the bands before one: as many lie before its own in shared memory."""
        bits = T.shift_left(T.int32(1), band * (STEP // self.shape.group)) - 1
        return T.bind(hopper.count_bits(T.bitwise_and(live, bits)))

    def _product(self, sums: Any, keep: Any, stage: Any, place: Any, live: Any, part: Any) -> None:
        """The band's live pieces of a step; the sums begin anew where ``keep`` is 0."""
        shape = self.shape
        w = T.bind(hopper.matrix(self._w.ptr_to([stage, place * BAND * shape.group]), shape.group))
        rows = self._x.ptr_to([stage, part * shape.columns * shape.group])
        x = T.bind(hopper.matrix(rows, shape.group))
        left = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(left, live, [0])
        # A loop, not a branch for each piece: those the compiler would serialize.
        with T.serial(0, hopper.count_bits(live) if shape.group < STEP else 1) as taken:
            piece = T.bind(hopper.lowest_bit(left[0]))
            T.buffer_store(left, T.bitwise_and(left[0], left[0] - 1), [0])
            a = T.bind(w + T.cast(taken * (shape.piece_bytes // 16), "uint64"))
            b = T.bind(x + T.cast(piece * (shape.rows * shape.group // 8), "uint64"))
            hopper.wgmma_fence()
            for inside in range(0, shape.group, _SLICE):
                hopper.wgmma(
                    T.address_of(sums[0]),
                    a + T.uint64(inside // 8),
                    b + T.uint64(inside // 8),
                    T.int32(1) if inside else keep[0],
                    columns=shape.columns,
                    dtype=self.multiplied,
                )
            T.buffer_store(keep, 1, [0])
        hopper.wgmma_commit()

    def _release_busy(self, thread: Any, busy: Any) -> None:
        with T.If(busy[0] >= 0), T.Then():
            self._release(thread, busy[0])

    def _release(self, thread: Any, stage: Any) -> None:
        """Each warp tells every block that fills this stage: a lane for each block."""
        lane = T.floormod(thread, 32)
        with T.If(lane < self.shape.cluster), T.Then():
            if self.shape.cluster == 1:
                hopper.call("arrive", self._empty.ptr_to([stage]))
            else:
                hopper.call("arrive_at", self._empty.ptr_to([stage]), lane)

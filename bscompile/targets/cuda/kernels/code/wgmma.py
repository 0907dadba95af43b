"""y = x Wᵀ over bands on Hopper: TMA fills a ring, mbarriers tell of it, wgmma empties it.

A tile of y is ``rows`` rows by ``bands`` times 64 outputs. One thread walks the tile's steps and
has the TMA unit bring, for each, 64 gathered columns of x and the bands that are live in it. Each
of the other warpgroups owns one band (and, with ``parts``, a share of the rows) and multiplies the
steps in which its band is live; so all bands share the tile of x. The band is the M of wgmma and
the rows are its N: a band's 64 outputs fill it whatever the trained block, and up to 256 rows make
the most of each read of W from shared memory.

``cluster`` blocks work side by side on neighbouring rows: each brings a part of every band and
multicasts it to the others. Blocks stay (a persistent grid) and take tiles in turn, the longest
first, while the ring goes on filling across tiles.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import HardwareSpec, Problem
from bscompile.targets.cuda.kernels.band_shape import GROUP, BandShape
from bscompile.targets.cuda.kernels.bands import BAND, BAND_BYTES, STEP
from bscompile.targets.cuda.kernels.code import hopper
from bscompile.targets.cuda.kernels.code.signature import Arguments, Operands, generate, tiles
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
        self.clusters = self.resident * shape.processors(hardware) // shape.cluster
        self.values, self.starts, self.live, self.indptr, self.order = args.operands

    def emit(self) -> None:
        tile_map = self._encode_map()
        T.device_entry()
        with T.attr({"tirx.launch_bounds_min_blocks_per_sm": self.resident}):
            self._on_device(tile_map)

    def _on_device(self, tile_map: Any) -> None:
        shape = self.shape
        tile_rows = -(-self.problem.n // (BAND * shape.bands))
        self._tiles = T.cast(tiles(self.args.m, self._span()), "int32")
        items = tile_rows * self._tiles
        clusters = T.min(items, self.clusters)
        block = T.cta_id([clusters * shape.cluster])
        self._rank = T.cta_id_in_cluster([shape.cluster]) if shape.cluster > 1 else 0
        thread = T.thread_id([shape.threads])
        self._reserve()
        with T.If(thread == 0), T.Then():
            hopper.call("aligned", self._x.ptr_to([0, 0]))
            hopper.call("prefetch_map", T.address_of(tile_map))
            with T.unroll(shape.stages) as stage:
                hopper.call("barrier_init", self._full.ptr_to([stage]), 1)
                arrivals = 4 * shape.workers * shape.cluster
                hopper.call("barrier_init", self._empty.ptr_to([stage]), arrivals)
            hopper.call("barriers_ready")
        hopper.call("cluster_sync" if shape.cluster > 1 else "block_sync")
        registers = shape.registers(self.resident)
        first = T.bind(T.floordiv(block, shape.cluster))
        turns = T.bind(T.truncdiv(items - first + (clusters - 1), clusters))
        with T.If(thread < GROUP):
            with T.Then():
                if registers:
                    hopper.set_registers(registers[0], more=False)
                with T.If(thread == 0), T.Then():
                    self._load(tile_map, first, turns, clusters)
            with T.Else():
                if registers:
                    hopper.set_registers(registers[1], more=True)
                self._multiply(T.bind(thread - GROUP), first, turns, clusters)
        if shape.cluster > 1:  # nobody leaves while others may still write here
            hopper.call("cluster_sync")

    def _span(self) -> int:
        """Rows of x that a cluster takes together."""
        return self.shape.rows * self.shape.cluster

    def _encode_map(self) -> Any:
        """On the host: how the TMA unit sees x. What lies outside of it becomes zeros."""
        args, group = self.args, self.shape.group
        tile_map = T.Var("x_map", ty=T.handle("tensormap").ty)
        T.Bind(T.tvm_stack_alloca("tensormap", 1), var=tile_map)
        k = self.problem.k
        encode = T.tensormap_encode_tiled(
            *(tile_map, args.x.data, k, args.m, 2 * k, group, self.shape.rows, 1, 1),
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
        self._w = pool.alloc((shape.stages, shape.bands, BAND * STEP), self.multiplied, align=1024)
        self._staging = Staging(pool, shape.workers, shape.columns)
        self._full = pool.alloc((shape.stages,), "uint64", align=8)
        self._empty = pool.alloc((shape.stages,), "uint64", align=8)
        pool.commit()
        self._turn = T.alloc_buffer((1,), "int32", scope="local")  # steps since the launch

    def _tile(self, turn: Any, first: Any, clusters: Any) -> tuple[Any, Any, Any]:
        """(packed tile row, first row of x, first step) of a turn."""
        item = T.bind(first + turn * clusters)
        packed = T.bind(T.truncdiv(item, self._tiles))
        at = T.truncmod(item, self._tiles) * self._span() + self._rank * self.shape.rows
        return packed, T.bind(at), T.bind(self.indptr[packed])

    def _load(self, tile_map: Any, first: Any, turns: Any, clusters: Any) -> None:
        shape = self.shape
        pieces, part = STEP // shape.group, BAND_BYTES // shape.cluster
        T.buffer_store(self._turn, 0, [0])
        with T.serial(0, turns) as turn:
            packed, row, begin = self._tile(turn, first, clusters)
            with T.serial(0, self.indptr[packed + 1] - begin) as j:
                step = T.bind(begin + j)
                stage, lap = self._place()
                bands = T.bind(self.live[step, 0])
                held = T.alloc_buffer((1,), "int32", scope="local")
                hopper.call("wait", self._empty.ptr_to([stage]), lap ^ 1)
                full = self._full.ptr_to([stage])
                hopper.call("expect", full, shape.x_bytes + self.live[step, 2] * BAND_BYTES)
                for piece in range(pieces):
                    to = self._x.ptr_to([stage, piece * shape.rows * shape.group])
                    column = self.starts[step, piece] * self.unit
                    hopper.call("load_tile", to, T.address_of(tile_map), column, row, full)
                T.buffer_store(held, self.live[step, 1], [0])
                with T.serial(0, shape.bands) as band, T.If(_has(bands, band)), T.Then():
                    self._load_band(stage, band, held[0], part, full)
                    T.buffer_store(held, held[0] + 1, [0])
                T.buffer_store(self._turn, self._turn[0] + 1, [0])

    def _load_band(self, stage: Any, band: Any, place: Any, part: int, full: Any) -> None:
        """This block's part of a band, to every block of the cluster."""
        elements = self._rank * (part // 2)
        row, column = T.floordiv(elements, STEP), T.floormod(elements, STEP)
        to = self._w.ptr_to([stage, band, elements])
        come_from = T.address_of(self.values[place, row, column])
        if self.shape.cluster == 1:
            hopper.call("load_bytes", to, come_from, part, full)
        else:
            everyone = (1 << self.shape.cluster) - 1
            hopper.call("load_bytes_everywhere", to, come_from, part, full, everyone)

    def _place(self) -> tuple[Any, Any]:
        """(stage, parity of the lap) of the ring's present turn."""
        stage = T.bind(T.floormod(self._turn[0], self.shape.stages))
        lap = T.bitwise_and(T.floordiv(self._turn[0], self.shape.stages), 1)
        return stage, T.bind(lap)

    def _multiply(self, thread: Any, first: Any, turns: Any, clusters: Any) -> None:
        shape = self.shape
        worker = T.bind(T.floordiv(thread, GROUP))
        band, part = T.floormod(worker, shape.bands), T.floordiv(worker, shape.bands)
        sums = T.alloc_buffer((shape.columns // 2,), "float32", scope="local")
        keep = T.alloc_buffer((1,), "int32", scope="local")
        busy = T.alloc_buffer((1,), "int32", scope="local")  # stage still being read, or -1
        T.buffer_store(self._turn, 0, [0])
        with T.serial(0, turns) as turn:
            packed, row, begin = self._tile(turn, first, clusters)
            T.buffer_store(keep, 0, [0])
            T.buffer_store(busy, -1, [0])
            with T.serial(0, self.indptr[packed + 1] - begin) as j:
                stage, lap = self._place()
                hopper.call("wait", self._full.ptr_to([stage]), lap)
                with T.If(_has(self.live[begin + j, 0], band)):
                    with T.Then():
                        self._product(sums, keep, stage, band, part)
                        hopper.wgmma_wait(1)
                        self._release_busy(thread, busy)
                        T.buffer_store(busy, stage, [0])
                        T.buffer_store(keep, 1, [0])
                    with T.Else():  # a stage held while others go by would stop the ring
                        hopper.wgmma_wait(0)
                        self._release_busy(thread, busy)
                        self._release(thread, stage)
                        T.buffer_store(busy, -1, [0])
                T.buffer_store(self._turn, self._turn[0] + 1, [0])
            hopper.wgmma_wait(0)
            self._release_busy(thread, busy)
            column = T.bind((self.order[packed] * shape.bands + band) * BAND)
            self._staging.store(
                self.args, sums, worker, thread, T.bind(row + part * shape.columns), column
            )

    def _product(self, sums: Any, keep: Any, stage: Any, band: Any, part: Any) -> None:
        """The step's four slices; the sums begin anew where ``keep`` is 0."""
        shape = self.shape
        hopper.wgmma_fence()
        w = T.bind(hopper.matrix(self._w.ptr_to([stage, band, 0]), STEP))
        rows = self._x.ptr_to([stage, part * shape.columns * shape.group])
        x = T.bind(hopper.matrix(rows, shape.group))
        for inside in range(STEP // _SLICE):
            piece, rest = divmod(inside * _SLICE, shape.group)
            hopper.wgmma(
                T.address_of(sums[0]),
                w + T.uint64(inside * _SLICE * 2 // 16),
                x + T.uint64((piece * shape.rows * shape.group + rest) * 2 // 16),
                T.int32(1) if inside else keep[0],
                columns=shape.columns,
                dtype=self.multiplied,
            )
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


def _has(bits: Any, place: Any) -> Any:
    return T.bitwise_and(T.shift_right(bits, place), 1) == 1

"""The templates that run packed steps, dense or block-sparse, on either kind of cores."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from bscompile.dialect import Weight
from bscompile.dialect.precision import itemsize, stored_dtype
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.cuda.kernels.packing import Layout, expected_steps, groups_for, pack_layer
from bscompile.targets.cuda.kernels.roofline import (
    FMA_SHARE,
    KEPT_BACK,
    STEP_SECONDS,
    STORE_SECONDS,
    Work,
    ends_bytes,
    mma_share,
    seconds,
)

if TYPE_CHECKING:
    from bscompile.targets.cuda.kernels.packing import Operands

HALVES = ("float16", "bfloat16")
_WIDEST = {"int8": 16, "tf32": 4}  # inputs in the 16 bytes that cp.async moves; else 8
_PAD_BYTES = 16  # after each row of a tile in shared memory
_MOST = 24  # configurations worth a try
_CHUNKS = (4, 8, 16, 32)  # steps of a piece of a tile row
_MOST_THREADS = 1024  # of a processor, with up to 64 registers each


class StepTemplate(KernelTemplate):
    """What the three have in common. ``form`` is dense or block_sparse.

    Too few tiles to fill the machine are cut in pieces of ``chunk`` steps, where that is in the
    configuration: thread blocks of their own, whose sums a second launch adds up.
    """

    dtypes: tuple[str, ...] = ()
    step_bytes = 128
    cuts_rows = True

    def __init__(self, form: str) -> None:
        self.form = form
        self.name = f"{form}_{self.kind}"

    kind = ""
    #: Dtypes of W in which x comes, too: a dense W that lies as it is then suits cuBLAS.
    shared_dtypes: tuple[str, ...] = ()

    def rival(self, problem: Problem) -> str:
        """CuBLAS, for a floating dense layer of whole steps: see either_way.py."""
        whole = self.form == "dense" and problem.k % self.step(problem.dtype) == 0
        return "cuBLAS" if whole and problem.dtype in self.shared_dtypes else ""

    def step(self, dtype: str) -> int:
        """Inputs of a step."""
        return self.step_bytes // itemsize(dtype)

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Tiles that fit the machine, the cheapest by cost first."""
        if problem.form != self.form or problem.dtype not in self.dtypes:
            return ()
        group = self.group(problem)
        configs = [
            {**shape, "group": group, **cut}
            for shape in self.shapes(problem)
            if self.shared_bytes(shape, problem.dtype) <= hardware.group_bytes
            for cut in self.cuts(problem, {**shape, "group": group}, hardware)
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware))[:_MOST])

    def group(self, problem: Problem) -> int:
        """Neighbouring inputs that are live together."""
        return groups_for(problem, self.step(problem.dtype))

    @abstractmethod
    def shapes(self, problem: Problem) -> list[dict[str, int | str]]:
        """Configurations but for the group."""

    @abstractmethod
    def shared_bytes(self, shape: Config, dtype: str) -> int:
        """Shared memory of one thread block."""

    def cuts(
        self, problem: Problem, config: Config, hardware: HardwareSpec
    ) -> list[dict[str, int]]:
        """How long tile rows may be cut in pieces: ``chunk`` steps each; an empty one for not."""
        layout = self.layout(problem, config)
        tile_rows, tiles = -(-problem.n // layout.rows), -(-problem.rows // int(config["rows"]))
        if not self.cuts_rows or tile_rows * tiles >= 2 * hardware.cores:
            return [{}]  # there is enough to do side by side, and the longest begin first
        per_row = expected_steps(problem, layout) / tile_rows
        return [{}, *({"chunk": chunk} for chunk in _CHUNKS if per_row >= 2 * chunk)]

    def layout(self, problem: Problem, config: Config) -> Layout:
        """How the configuration cuts a weight."""
        widest = _WIDEST.get(problem.dtype, 8)
        return Layout(int(config["tile"]), int(config["group"]), self.step(problem.dtype), widest)

    def pack(self, problem: Problem, weight: Weight, config: Config) -> Operands:
        """The weight in the layout's steps."""
        chunk = int(config.get("chunk", 0))
        return pack_layer(problem, weight, self.layout(problem, config), chunk)

    @staticmethod
    def launches(problem: Problem, multiplied: str) -> int:
        """Of one call, those included that make x what is ``multiplied``."""
        if problem.x_dtype in (multiplied, "int8", "uint8"):
            return 1
        return 3 if problem.activation == "tensor" else 2

    def work(self, problem: Problem, config: Config, rate: float) -> Work:
        """What the launch does: each tile of x is read again for every tile row."""
        layout, rows = self.layout(problem, config), int(config["rows"])
        tile_rows, tiles = -(-problem.n // layout.rows), -(-problem.rows // rows)
        steps, size = expected_steps(problem, layout), itemsize(problem.dtype)
        depth, pieces, partial = steps / tile_rows, tile_rows, 0.0
        if chunk := int(config.get("chunk", 0)):
            pieces = tile_rows * math.ceil(depth / chunk)
            partial = 2 * 4.0 * pieces * layout.rows * tiles * rows  # sums, there and back
            depth = float(chunk)
        return Work(
            blocks=pieces * tiles,
            operations=2.0 * steps * layout.rows * layout.step * tiles * rows,
            rate=rate,
            near_bytes=tiles * steps * layout.step * size * (rows + layout.rows) + partial,
            far_bytes=steps * layout.rows * layout.step * size + ends_bytes(problem),
            depth=depth / max(1, int(config.get("stages", 1)) - 1),
        )


class TensorCores(StepTemplate):
    """Configuration: ``tile`` outputs x ``rows``, warps along both, ``stages``, ``group``."""

    kind = "tensor_cores"
    dtypes: tuple[str, ...] = (*HALVES, "tf32", "int8")
    shared_dtypes = HALVES

    def shapes(self, problem: Problem) -> list[dict[str, int | str]]:
        """Tiles of at least one fragment for each of up to eight warps."""
        found: list[dict[str, int | str]] = []
        for tile in (16, 32, 64, 128):
            for rows in (16, 32, 64, 128):
                if tile >= 2 * max(16, problem.n) or rows >= 2 * max(16, problem.rows):
                    continue
                warps = 8 if tile * rows >= 128 * 128 else 4
                warps_m = min(rows // 16, warps if tile < 64 else warps // 2)
                warps_n = max(1, min(tile // 16, warps // warps_m))
                found += [
                    {
                        "tile": tile,
                        "rows": rows,
                        "warps_m": warps_m,
                        "warps_n": warps_n,
                        "stages": stages,
                    }
                    for stages in (4, 3)
                ]
        return found

    def shared_bytes(self, shape: Config, dtype: str) -> int:
        """The ring, and the sums on their way out."""
        tile, rows = int(shape["tile"]), int(shape["rows"])
        ring = int(shape["stages"]) * (tile + rows) * (self.step_bytes + _PAD_BYTES)
        return ring + rows * (tile + 4) * 4

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call, with the pass over x that makes it narrow.

        A tile's beginning and end go on beside the products of the other blocks that a processor
        holds. So where two fit, a grid that stays would save nothing.
        """
        rate = hardware.peak_gflops[problem.dtype] * 1e9 * mma_share(hardware)
        work = self.work(problem, config, rate)
        mine = work.operations / max(1, work.blocks)
        end = self.end_seconds(config) / self.resident(problem, config, hardware)
        more = self.launches(problem, problem.dtype) - 1 + ("chunk" in config)
        return (
            seconds(hardware, replace(work, rate=mine / (mine / rate + end)))
            + more * hardware.launch_seconds
        )

    @staticmethod
    def end_seconds(config: Config) -> float:
        """The ring's filling before the first product of a tile, and the way of its sums to y."""
        stored = int(config["tile"]) * int(config["rows"]) / (1024 * _threads(config) / 128)
        return STEP_SECONDS + stored * STORE_SECONDS

    def resident(self, problem: Problem, config: Config, hardware: HardwareSpec) -> int:
        """Blocks that a processor holds at once, by its shared memory and threads."""
        held = self.shared_bytes(config, problem.dtype) + KEPT_BACK
        return max(
            1, min((hardware.group_bytes + KEPT_BACK) // held, _MOST_THREADS // _threads(config))
        )

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the weight and schedule the kernel; 16-bit x comes as it is multiplied."""
        from bscompile.targets.cuda.kernels.code import tensor_core

        operands = self.pack(problem, weight, config)
        func = tensor_core.kernel(
            problem,
            operands,
            self.layout(problem, config),
            problem.dtype,
            rows=int(config["rows"]),
            warps_m=int(config["warps_m"]),
            warps_n=int(config["warps_n"]),
            stages=int(config["stages"]),
        )
        return Kernel(func, operands, x_dtype="" if problem.dtype == "int8" else problem.dtype)


class CudaCores(StepTemplate):
    """Configuration: ``tile`` outputs x ``rows``, threads along both, ``group``; float32 only."""

    kind = "cuda_cores"
    dtypes = shared_dtypes = ("float32",)

    def shapes(self, problem: Problem) -> list[dict[str, int | str]]:
        """Tiles in which a thread has at most 8x8 sums."""
        return [
            {"tile": tile, "rows": rows, "threads_m": rows // own, "threads_n": tile // own}
            for tile in (16, 32, 64, 128)
            for rows in (16, 32, 64, 128)
            for own in (2, 4, 8)
            if tile < 2 * max(16, problem.n) and rows < 2 * max(16, problem.rows)
            if 64 <= rows * tile // own**2 <= 256
        ]

    def shared_bytes(self, shape: Config, dtype: str) -> int:
        """One step of both sides; without rows of padding it must fit what needs no opt-in."""
        return (int(shape["tile"]) + int(shape["rows"])) * (self.step_bytes + 4)

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call; 2x2 sums read shared memory as often as they multiply."""
        own = int(config["tile"]) // int(config["threads_n"])
        share = FMA_SHARE * min(1.0, own / 4)
        rate = hardware.peak_gflops["float32"] * 1e9 * share
        more = ("chunk" in config) * hardware.launch_seconds
        return seconds(hardware, self.work(problem, config, rate)) + more

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the weight and schedule the kernel."""
        from bscompile.targets.cuda.kernels.code import simt

        operands = self.pack(problem, weight, config)
        func = simt.kernel(
            problem,
            operands,
            self.layout(problem, config),
            rows=int(config["rows"]),
            threads_m=int(config["threads_m"]),
            threads_n=int(config["threads_n"]),
        )
        return Kernel(func, operands)


class FewRows(StepTemplate):
    """Configuration: ``rows`` at a time, ``tile``, ``split`` warps for each tile row, ``group``."""

    kind = "few_rows"
    cuts_rows = False  # ``split`` does that inside a thread block
    dtypes = ("float32", "tf32", *HALVES, "int8")
    shared_dtypes = ("float32",)

    def step(self, dtype: str) -> int:
        """Inputs of a step: so few that a warp has several outputs of it."""
        return 64

    def shapes(self, problem: Problem) -> list[dict[str, int | str]]:
        """As few passes over W as the sums' registers allow."""
        few = [rows for rows in (1, 2, 4, 8, 16) if rows < 2 * problem.rows]
        return [
            {"tile": tile, "rows": rows, "split": split}
            for rows in few[-2:]
            for tile in (32, 16)
            for split in (1, 2, 4, 8)
        ]

    def shared_bytes(self, shape: Config, dtype: str) -> int:
        """The warps' sums; a warp has at most 32 outputs."""
        return int(shape["split"]) * int(shape["rows"]) * 32 * 4

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call: every warp reads x for itself, once for each product."""
        rate = hardware.peak_gflops["float32"] * 1e9 * 0.25
        work = self.work(problem, config, rate)
        split, layout = int(config["split"]), self.layout(problem, config)
        lanes = min(32, layout.step // layout.unit(problem.k))
        blocks = work.blocks * layout.rows * lanes // 32
        filled = min(1.0, blocks * split / (8 * hardware.cores))
        rows = int(config["rows"])
        tiles, steps = -(-problem.rows // rows), expected_steps(problem, layout)
        parts = layout.rows * lanes // 32  # warps that a tile row's outputs are shared by
        multiplied = problem.dtype if problem.dtype == "int8" else problem.x_dtype
        size = itemsize(problem.dtype) * layout.rows + itemsize(multiplied) * rows * parts
        more = self.launches(problem, multiplied) - 1
        return more * hardware.launch_seconds + seconds(
            hardware,
            Work(
                blocks=blocks,
                operations=work.operations,
                rate=rate,
                near_bytes=tiles * steps * layout.step * size / max(filled, 0.05),
                far_bytes=work.far_bytes / max(filled, 0.05),
                depth=steps * tiles / max(1, work.blocks) / split,
            ),
        )

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the weight and generate the kernel; x comes as it is."""
        from bscompile.targets.cuda.kernels.code import gemv

        operands = self.pack(problem, weight, config)
        func = gemv.kernel(
            problem,
            operands,
            self.layout(problem, config),
            stored_dtype(problem.dtype).name,
            rows=int(config["rows"]),
            split=int(config["split"]),
        )
        return Kernel(func, operands)


def _threads(config: Config) -> int:
    return 32 * int(config["warps_m"]) * int(config["warps_n"])

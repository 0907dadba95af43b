"""The templates of dense and block-sparse layers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from bscompile.dialect import Weight, dense_weight
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Array, Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.gpu.kernels.packing import pack_blocks, pack_panels
from bscompile.targets.gpu.kernels.roofline import Work, seconds
from bscompile.targets.gpu.limits import CPU, fits, storage

_DEPTHS = (8, 16, 32)
_LONGEST_HALF_SUM = 16  # products that are summed in float16
_LANES = (16, 8, 4)
_REGISTERS = 24  # vectors of sums, of a CPU's 32
_FEW = 8  # rows up to which weights may be read once for all of them


def panel_configs(problem: Problem, width: int, hardware: HardwareSpec) -> Iterator[Config]:
    """Configurations of either nest for panels of one width."""
    m = problem.rows
    if CPU in hardware.features:
        lanes = next((v for v in _LANES if width % v == 0 and 4 * v <= hardware.vector_bytes), 1)
        for rows in (1, 2, 4, 8, 12):
            if rows < 2 * m and rows * width // lanes <= _REGISTERS:
                yield {"nest": "direct", "width": width, "rows": rows, "lanes": lanes}
    if m <= _FEW:
        for threads in (64, 128, 256):
            slices = max(1, threads // width)
            if fits(hardware, slices * width, 4 * slices * m * width):
                yield {"nest": "slices", "width": width, "slices": slices}
    halves = storage(problem.dtype, hardware) == "float16"
    for multiply, outputs, rows, row_threads, depth in product(
        ("float32", "float16") if halves else ("float32",),
        (1, 2, 4),
        (1, 2, 4, 8),
        (4, 8, 16, 32),
        _DEPTHS,
    ):
        if width % outputs or rows * row_threads >= 2 * m + 4:
            continue
        if multiply == "float16" and depth > _LONGEST_HALF_SUM:
            continue
        config: dict[str, int | str] = {
            "nest": "tiles",
            "width": width,
            "rows": rows,
            "outputs": outputs,
            "row_threads": row_threads,
            "depth": depth,
        }
        if multiply == "float16":
            config["multiply"] = multiply
        if _fits(config, hardware):
            yield config


def _fits(config: Config, hardware: HardwareSpec) -> bool:
    tile = tile_of(config)
    return tile.threads >= 16 and fits(hardware, tile.threads, tile.shared_bytes)


def tile_of(config: Config) -> Any:
    """The tile that a configuration names."""
    from bscompile.targets.gpu.kernels.code.tiles import Tile

    return Tile(
        int(config["rows"]),
        int(config["outputs"]),
        int(config["row_threads"]),
        int(config["depth"]),
        int(config["width"]),
        multiplied_in(config),
    )


def multiplied_in(config: Config) -> str:
    """What a configuration multiplies x and the weights in."""
    return str(config.get("multiply", "float32"))


def nest_of(config: Config) -> Any:
    """The code that a configuration names."""
    from bscompile.targets.gpu.kernels.code.linear import single, sliced, tiled

    if config["nest"] == "direct":
        return single(int(config["width"]), int(config["rows"]), int(config["lanes"]))

    if config["nest"] == "slices":
        return sliced(int(config["width"]), int(config["slices"]))
    return tiled(tile_of(config))


def panel_seconds(
    problem: Problem,
    config: Config,
    hardware: HardwareSpec,
    panels: int,
    entries: float,
    weight_bytes: float,
) -> float:
    """Expected time of a nest over ``panels`` panels of ``entries`` entries each.

    ``weight_bytes`` are those of all panels together.
    """
    m, width = problem.rows, int(config["width"])
    out_bytes = 4.0 * m * problem.n * (1 + sum(s == "residual" for s in problem.epilogue))
    if config["nest"] == "direct":
        rows, vectors = int(config["rows"]), width // int(config["lanes"])
        strips = -(-m // rows)
        operations = entries * (rows * (1 + vectors) + vectors + 3) + rows * width * 4
        # The rows of x stay in the nearest cache, so does a panel from one strip to the next.
        work = Work(panels * strips, 1, operations, 0, weight_bytes + out_bytes)
        return seconds(hardware, work)
    if config["nest"] == "slices":
        slices = int(config["slices"])
        operations = -(-entries // slices) * (2 * m + 4) + m * slices
        read = weight_bytes + 4.0 * panels * entries * m
        work = Work(panels, slices * width, operations, 2, read + out_bytes)
        return seconds(hardware, work)
    rows, outputs = int(config["rows"]), int(config["outputs"])
    depth, tall = int(config["depth"]), rows * int(config["row_threads"])
    threads = int(config["row_threads"]) * width // outputs
    strips = -(-m // tall)
    trips = -(-entries // depth)
    fetched = 4 * -(-depth * (tall + width) // threads)
    arithmetic = float(depth * (rows * outputs + rows + outputs))
    if multiplied_in(config) == "float16":
        arithmetic /= hardware.peak_gflops["float16"] / hardware.peak_gflops["float32"]
        fetched += 3 * rows * outputs  # a slice's sums are widened and added
    operations = trips * (arithmetic + fetched) + 4 * rows * outputs
    read = weight_bytes * strips + 4.0 * panels * entries * m
    return seconds(
        hardware, Work(panels * strips, threads, operations, 2 * trips, read + out_bytes)
    )


class DenseTemplate(KernelTemplate):
    """Configuration: the ``nest`` and its sizes, ``width`` of a panel among them."""

    name = "dense"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Tiles that the device can run, the cheapest by cost first."""
        if problem.form != "dense" or problem.m is None or not _taken(problem, hardware):
            return ()
        configs = [
            config
            for width in (8, 16, 32, 64)
            if width == 8 or width < 2 * problem.n
            for config in panel_configs(problem, width, hardware)
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        width = int(config["width"])
        panels = -(-problem.n // width)
        weight_bytes = float(_itemsize(problem) * panels * width * problem.k)
        return panel_seconds(problem, config, hardware, panels, problem.k, weight_bytes)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the weight in panels and generate the kernel."""
        from bscompile.targets.gpu.kernels.code.linear import generate_dense

        values = pack_panels(
            dense_weight(weight), int(config["width"]), storage(problem.dtype, hardware)
        )
        operands: tuple[tuple[str, Array], ...] = (("panels", values),)
        return Kernel(generate_dense(problem, operands, nest_of(config)), operands)


class BlockSparseTemplate(KernelTemplate):
    """Configuration: the ``nest`` and its sizes; a panel is a block row."""

    name = "block_sparse"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Tiles that the device can run, the cheapest by cost first."""
        if problem.form != "block_sparse" or problem.m is None or not _taken(problem, hardware):
            return ()
        configs = list(panel_configs(problem, problem.block[0], hardware))
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        bh, bw = problem.block
        panels = -(-problem.n // bh)
        entries = problem.nnzb * bw / panels
        weight_bytes = float(problem.nnzb * (bh * bw * _itemsize(problem) + 4))
        return panel_seconds(problem, config, hardware, panels, entries, weight_bytes)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the live blocks and generate the kernel."""
        from bscompile.targets.gpu.kernels.code.linear import generate_block_sparse

        assert isinstance(weight, BlockSparseMatrix)
        operands = pack_blocks(weight, storage(problem.dtype, hardware))
        return Kernel(generate_block_sparse(problem, operands, nest_of(config)), operands)


def _taken(problem: Problem, hardware: HardwareSpec) -> bool:
    return bool(storage(problem.dtype, hardware))


def _itemsize(problem: Problem) -> int:
    return np.dtype(problem.dtype).itemsize

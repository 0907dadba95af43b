"""The template of block-sparse layers with tall enough blocks: lanes run over outputs."""

from __future__ import annotations

from collections.abc import Hashable
from math import inf

import numpy as np

from bscompile.dialect import Weight
from bscompile.dialect.precision import itemsize
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Config, HardwareSpec, Image, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.chunks import CHUNK, column_chunks, held_beside
from bscompile.targets.kernels.packing import pack_block_rows, widens
from bscompile.targets.kernels.prefetch import ahead_of, comes_from_memory, distances
from bscompile.targets.kernels.roofline import (
    TILE,
    block_units,
    even,
    lanes_of,
    registers_of,
    row_tiles,
    scattered,
    seconds,
    store_units,
    task_counts,
)
from bscompile.targets.kernels.vectors import pieces

MAX_HEIGHT = 64  # taller blocks would not leave registers for more than a few rows


class BlockSparseOutputs(KernelTemplate):
    """Configuration: ``rows`` per tile, ``tasks``, ``split``, ``outer``, ``ahead``, ``chunks``."""

    name = "block_sparse_outputs"
    reads_images = True

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Register tiles that fit the machine, the cheapest by cost first."""
        bh = problem.block[0]
        if problem.form != "block_sparse" or not widens(problem, hardware) or bh > MAX_HEIGHT:
            return ()
        lanes = lanes_of(hardware)
        vectors = len(pieces(bh, lanes))
        block_bytes = itemsize(problem.dtype) * bh * problem.block[1]
        weight_bytes = problem.nnzb * block_bytes
        configs = [
            {
                "rows": rows,
                "tasks": tasks,
                "split": split,
                "outer": outer,
                "ahead": ahead,
                "chunks": chunks,
            }
            for rows in (1, 2, 4, 6, 8)  # more rows collide in the nearest cache
            if rows == 1 or rows * vectors <= registers_of(hardware)
            if rows <= max(1, problem.rows)
            for tasks in task_counts(hardware)
            for split in (("outputs", "rows") if tasks > 1 else ("outputs",))
            for outer in ("rows", "outputs")
            for ahead in distances(weight_bytes, problem.m, rows, block_bytes)
            for chunks in column_chunks(problem, hardware, rows, 4)
            if chunks == 1 or (split, ahead) == ("outputs", 0)
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        rows, tasks = int(config["rows"]), int(config["tasks"])
        lanes, (bh, bw) = lanes_of(hardware), problem.block
        tiles, block_rows = row_tiles(problem, rows), -(-problem.n // bh)
        units = problem.nnzb * block_units(rows, bh, bw, lanes)
        units += block_rows * (min(1.0, rows / 4) * TILE + store_units(problem, rows, bh, lanes))
        by_rows = config["split"] == "rows"
        share = even(tiles if by_rows else block_rows, tasks)
        weight_bytes = float(problem.nnzb * (itemsize(problem.dtype) * bh * bw + 2))
        weight_held = weight_bytes if by_rows else weight_bytes / tasks
        x_total = 4.0 * problem.k * problem.rows
        x_held = x_total / tasks if by_rows else x_total
        x_bytes = 4.0 * problem.nnzb * problem.rows * max(bw, 16)  # a cache line at least
        chunks = int(config["chunks"])
        x_tile = 4.0 * problem.k * rows
        if comes_from_memory(weight_bytes, problem.m, rows):
            x_held = x_tile = held_beside(problem, rows, 4, chunks)
        units += (chunks - 1) * block_rows * (CHUNK + store_units(problem, rows, bh, lanes))
        traffic: list[tuple[float, ...]] = []
        streamed: list[tuple[float, ...]] = []
        if config["outer"] == "rows":
            weights = (weight_bytes * tiles, weight_held, weight_bytes)
            (streamed if tiles > 1 else traffic).append(weights)
            traffic.append((x_bytes, x_tile))
            x_bytes = x_total * (1 if by_rows else tasks)  # from beyond the tile, once
        else:
            repeats = tasks if by_rows else 1
            traffic += [(weight_bytes * repeats, weight_held, weight_bytes), (x_bytes, x_held)]
        traffic.append(scattered(hardware, x_bytes, x_total, 4.0 * bw))
        if not by_rows:  # the layer before left most of x in other cores' caches
            traffic.append((x_total * (tasks - 1), inf))
        return seconds(hardware, share, tiles * units, traffic, streamed=streamed)

    def packing(self, problem: Problem, config: Config) -> tuple[Hashable, ...]:
        """Block rows, as block_sparse_rows reads them, too, where columns are not cut."""
        return ("block rows", *([config["chunks"]] if config["chunks"] != 1 else ()))

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the live blocks and generate the kernel."""
        from bscompile.targets.kernels.code import block_sparse_outputs

        assert isinstance(weight, BlockSparseMatrix)
        tasks, chunks = int(config["tasks"]), int(config["chunks"])
        operands = pack_block_rows(weight, tasks, problem.dtype, chunks=chunks)
        func = block_sparse_outputs.generate(
            problem,
            operands,
            rows=int(config["rows"]),
            lanes=lanes_of(hardware),
            tasks=tasks,
            split=str(config["split"]),
            outer=str(config["outer"]),
            ahead=ahead_of(config),
            chunks=chunks,
        )
        return Kernel(func, operands)

    def build_conv(
        self,
        problem: Problem,
        weight: Weight,
        config: Config,
        hardware: HardwareSpec,
        image: Image,
    ) -> Kernel | None:
        """Pack the live blocks with the offsets of their inputs in the image."""
        from bscompile.targets.kernels.code import block_sparse_conv
        from bscompile.targets.kernels.code.windows import column_offsets, copied_line, positions_of

        assert isinstance(weight, BlockSparseMatrix)
        if image.channels_first:
            return None
        rows = int(config["rows"])
        output_width = image.conv.output_size(image.height, image.width)[1]
        line = copied_line(image, positions_of(output_width, rows))
        (_, values), (_, starts), (_, indptr), _ = pack_block_rows(weight, 1, problem.dtype)
        columns = starts[:, None] + np.arange(values.shape[1])
        operands = (
            ("values", values),
            ("offsets", column_offsets(image, line)[columns]),
            ("indptr", indptr),
        )
        func = block_sparse_conv.generate(
            problem,
            operands,
            image,
            rows=rows,
            lanes=lanes_of(hardware),
            tasks=int(config["tasks"]),
        )
        return Kernel(func, operands)

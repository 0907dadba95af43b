"""The template of dense layers: weight packed in panels, row tiles times panels in registers."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from bscompile.dialect import Weight, dense_weight
from bscompile.dialect.precision import itemsize
from bscompile.targets.base import (
    Array,
    Config,
    HardwareSpec,
    Image,
    Kernel,
    KernelTemplate,
    Problem,
)
from bscompile.targets.kernels.packing import stored, widens
from bscompile.targets.kernels.prefetch import ahead_of, distances
from bscompile.targets.kernels.roofline import (
    COLLIDE,
    TILE,
    even,
    input_units,
    lanes_of,
    registers_of,
    row_tiles,
    rows_collide,
    seconds,
    store_units,
    task_counts,
)


class DenseTemplate(KernelTemplate):
    """Configuration: ``rows`` per tile, ``width`` of a panel in outputs, ``tasks``, ``ahead``."""

    name = "dense"
    reads_images = True

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Register tiles that fit the machine, the cheapest by cost first."""
        if problem.form != "dense" or not widens(problem, hardware):
            return ()
        lanes = lanes_of(hardware)
        widths = [w for w in (lanes, 2 * lanes, 4 * lanes) if w <= problem.n] or [problem.n]
        weight_bytes = itemsize(problem.dtype) * problem.n * problem.k
        configs = [
            {"rows": rows, "width": width, "tasks": tasks, "ahead": ahead}
            for width in widths
            for rows in (1, 2, 4, 6, 8, 12)
            if rows * width <= registers_of(hardware) * lanes and rows <= max(1, problem.rows)
            for tasks in task_counts(hardware)
            for ahead in distances(weight_bytes, problem.m, rows, weight_bytes)
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        rows, width, tasks = int(config["rows"]), int(config["width"]), int(config["tasks"])
        lanes = lanes_of(hardware)
        tiles, panels = row_tiles(problem, rows), -(-problem.n // width)
        tile = problem.k * input_units(rows, width, lanes) + TILE
        tile += store_units(problem, rows, width, lanes)
        panel_bytes = itemsize(problem.dtype) * problem.k * width
        if rows_collide(hardware, problem.k, rows):
            tile += problem.k * rows / 16 * COLLIDE
        # Each panel comes once from where W stays, then again for each further row tile.
        traffic = [
            (panels * panel_bytes, panels * panel_bytes / tasks, panels * panel_bytes),
            ((tiles - 1) * panels * panel_bytes, panel_bytes),
        ]
        return seconds(hardware, even(tiles * panels, tasks), tiles * panels * tile, traffic)

    def packing(self, problem: Problem, config: Config) -> tuple[Hashable, ...]:
        """Panels of one width."""
        return "panels", config["width"]

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the weight in panels and generate the kernel."""
        from bscompile.targets.kernels.code import dense

        panels = pack_panels(stored(dense_weight(weight), problem.dtype), int(config["width"]))
        operands = (("panels", panels),)
        func = dense.generate(
            problem, operands, **_tiling(config, hardware), ahead=ahead_of(config)
        )
        return Kernel(func, operands)

    def build_conv(
        self,
        problem: Problem,
        weight: Weight,
        config: Config,
        hardware: HardwareSpec,
        image: Image,
    ) -> Kernel:
        """Pack the weight in panels; the tile's rows are positions of one output row."""
        from bscompile.targets.kernels.code import dense_conv

        dense = dense_weight(weight)
        if not image.channels_first:  # a row of the window is then one run
            windows = dense.reshape(problem.n, image.channels, *image.conv.kernel)
            dense = windows.transpose(0, 2, 3, 1).reshape(problem.n, problem.k)
        panels = pack_panels(stored(dense, problem.dtype), int(config["width"]))
        operands = (("panels", panels),)
        func = dense_conv.generate(problem, operands, image, **_tiling(config, hardware))
        return Kernel(func, operands)


def _tiling(config: Config, hardware: HardwareSpec) -> dict[str, int]:
    return {
        "rows": int(config["rows"]),
        "lanes": lanes_of(hardware),
        "tasks": int(config["tasks"]),
    }


def pack_panels(weight: Array, width: int) -> Array:
    """W [n, k] -> [panels, k, width]; the last panel ends at n, overlapping where it must.

    Raises:
        ValueError: ``width`` exceeds n.
    """
    n, k = weight.shape
    if not 0 < width <= n:
        raise ValueError(f"a panel of {width} does not fit {n} outputs")
    panels = -(-n // width)
    packed = np.empty((panels, k, width), weight.dtype)
    whole = n // width
    packed[:whole] = weight[: whole * width].reshape(whole, width, k).transpose(0, 2, 1)
    if whole < panels:
        packed[-1] = weight[n - width :].T
    return packed

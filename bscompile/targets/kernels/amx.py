"""The template of bfloat16 and int8 layers on Intel AMX's tile registers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np

from bscompile.dialect import Weight
from bscompile.dialect.precision import itemsize
from bscompile.targets.base import Array, Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.narrow import LONGEST_SUM, PREPARE
from bscompile.targets.kernels.packing_narrow import pack_bfloat16, pack_int8
from bscompile.targets.kernels.roofline import (
    LOOP,
    OVERLAP,
    TILE,
    even,
    lanes_of,
    read_rate,
    seconds,
    store_units,
    task_counts,
)

if TYPE_CHECKING:
    from bscompile.targets.kernels.code.amx import Unit

ROWS = 16  # of x in a tile
OUTPUTS = 16  # of a tile of weights, at most
INPUTS = {"bfloat16": 32, "int8": 64}  # of a tile, at most: 64 bytes of a row of x
GROUPS = {"bfloat16": 2, "int8": 4}
FEATURES = {"bfloat16": "amx_bf16", "int8": "amx_int8"}


class AmxTiles(KernelTemplate):
    """Configuration: ``rows``, tiles of 16 rows of x per tile of weights, ``tasks``, ``split``."""

    name = "amx"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Nothing without tiles; all that fits four tiles of sums with them."""
        if FEATURES.get(problem.dtype) not in hardware.features or problem.k > LONGEST_SUM:
            return ()
        if problem.form == "kronecker" or problem.block[0] > OUTPUTS:
            return ()
        configs = [
            {"rows": rows, "tasks": tasks, "split": split}
            for rows in (1, 2, 4)
            if rows == 1 or (rows - 1) * ROWS < problem.rows
            for tasks in task_counts(hardware)
            for split in (("outputs", "rows") if tasks > 1 else ("outputs",))
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call; fitted to no machine, there was none with tiles."""
        rows, tasks = int(config["rows"]), int(config["tasks"])
        dense = problem.form == "dense"
        bh, bw = (min(OUTPUTS, problem.n), problem.k) if dense else problem.block
        block_rows = -(-problem.n // bh)
        inputs = tile_inputs(problem.dtype, bw)
        tiles = (block_rows if dense else problem.nnzb) * -(-bw // inputs)
        groups = -(-problem.rows // (ROWS * rows))
        by_rows = config["split"] == "rows"
        share = even(groups if by_rows else block_rows, tasks)
        # A multiplication takes as long as the tile of weights has rows, whatever its width.
        macs = groups * tiles * rows * ROWS * OUTPUTS * inputs
        multiply = 2 * macs / (hardware.peak_gflops[problem.dtype] * 1e9) / share
        size = itemsize(problem.dtype)
        moved = groups * tiles * inputs * size * (bh + rows * ROWS)
        held = tiles * inputs * bh * size / (1 if by_rows else tasks)
        memory = moved / share / read_rate(hardware, held, share)
        lanes = lanes_of(hardware)
        units = groups * (tiles * LOOP + block_rows * TILE)
        units += block_rows * store_units(problem, groups * ROWS * rows, bh, lanes)
        units += PREPARE[problem.dtype] * problem.rows * problem.k / lanes
        around = seconds(hardware, share, units, [])
        return max(multiply, memory) + OVERLAP * min(multiply, memory) + around

    def packing(self, problem: Problem, config: Config) -> tuple[Hashable, ...]:
        """Tiles of weights."""
        return ("tiles",)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Round or quantise the weight where it is not yet, pack it in tiles, generate."""
        from bscompile.targets.kernels.code import amx

        unit = amx.INT8_TILES if problem.dtype == "int8" else amx.BFLOAT16_TILES
        return self.build_on(unit, problem, weight, config, hardware)

    def build_on(
        self,
        unit: Unit,
        problem: Problem,
        weight: Weight,
        config: Config,
        hardware: HardwareSpec,
    ) -> Kernel:
        """``build`` for another multiplier of tiles, such as an emulation."""
        from bscompile.targets.kernels.code import amx

        dense, tasks, group = problem.form == "dense", int(config["tasks"]), GROUPS[problem.dtype]
        width = problem.k if dense else min(problem.block[1], problem.k)
        inputs = tile_inputs(problem.dtype, width)
        layout = (min(OUTPUTS, problem.n), group, 1, tasks, inputs)
        if problem.dtype == "bfloat16":
            operands, place = pack_bfloat16(weight, *layout), 4
        else:
            operands, place = pack_int8(weight, *layout, dense=dense, in_words=True), 6
        height = operands[0][1].shape[2]
        tiles = ("tiles", configuration(height, inputs, group))
        operands = (*operands[:place], tiles, *operands[place:])
        func = amx.generate(
            problem,
            operands,
            unit=unit,
            inputs=inputs,
            rows=int(config["rows"]),
            lanes=lanes_of(hardware),
            tasks=tasks,
            split=str(config["split"]),
        )
        return Kernel(func, operands)


def tile_inputs(precision: str, width: int) -> int:
    """Inputs of a tile for blocks of that width: all of them in groups, or a full tile."""
    group = GROUPS[precision]
    return min(INPUTS[precision], -(-width // group) * group)


def configuration(outputs: int, inputs: int, group: int) -> Array:
    """What ldtilecfg reads: rows and bytes per row of each tile register.

    Returns:
        uint8 [64]: registers 0 to 3 hold sums, 4 and 5 rows of x, 6 weights.
    """
    config = np.zeros(64, np.uint8)
    config[0] = 1  # the palette
    widths, rows = config[16:48].view(np.uint16), config[48:64]
    widths[:4], rows[:4] = 4 * outputs, ROWS
    widths[4:6], rows[4:6] = inputs * 4 // group, ROWS
    widths[6], rows[6] = 4 * outputs, inputs // group
    return config

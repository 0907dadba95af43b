"""The template of bfloat16 and int8 layers, dense or block-sparse, on dot product instructions."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from bscompile.dialect import Weight
from bscompile.dialect.precision import itemsize
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.chunks import CHUNK, column_chunks, held_beside
from bscompile.targets.kernels.packing_narrow import pack_bfloat16, pack_int8
from bscompile.targets.kernels.prefetch import comes_from_memory
from bscompile.targets.kernels.roofline import (
    TILE,
    block_units,
    even,
    lanes_of,
    registers_of,
    row_tiles,
    seconds,
    store_units,
    task_counts,
)
from bscompile.targets.kernels.vectors import pieces

if TYPE_CHECKING:
    from bscompile.targets.kernels.code.dot import Product

MAX_HEIGHT = 64  # taller blocks would not leave registers for more than a few rows
LONGEST_SUM = 1 << 16  # inputs whose products surely fit an int32 sum
PREPARE = {"bfloat16": 2.0, "int8": 5.0}  # units of preparing one vector of x
HIDDEN_LOOP = 1.5  # units of roofline.LOOP that do not hide behind a block's products
EXCHANGE = 12.0  # GB/s of reading what another core has just written


class NarrowProducts(KernelTemplate):
    """Configuration: ``rows``, ``width`` of a panel, ``tasks``, ``split``, ``outer``, ``chunks``.

    Args:
        grouped: Registers that one instruction works on, as RISC-V's do: half of the instructions
            go away with two, while more would not leave registers for several rows.
    """

    name = "narrow"
    _rows: tuple[int, ...] = (1, 2, 4, 6, 8)

    def __init__(self, grouped: int = 1) -> None:
        self._grouped = grouped

    def kind(self, problem: Problem, hardware: HardwareSpec) -> str | None:
        """The kind of product for a problem; None where the machine has none."""
        return instruction(problem.dtype, hardware)

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Register tiles that fit the machine, the cheapest by cost first."""
        kind = self.kind(problem, hardware)
        if kind is None or problem.form == "kronecker" or problem.k > LONGEST_SUM:
            return ()
        lanes, (bh, _) = self._grouped * lanes_of(hardware), problem.block
        registers = registers_of(hardware) // self._grouped
        if problem.form == "block_sparse" and bh > MAX_HEIGHT:
            return ()
        wide = [w for w in (lanes, 2 * lanes, 4 * lanes) if w <= problem.n] or [problem.n]
        configs = [
            {
                "rows": rows,
                "width": width,
                "tasks": tasks,
                "split": split,
                "outer": outer,
                "chunks": chunks,
            }
            for width in (wide if problem.form == "dense" else [min(bh, problem.n)])
            for rows in self._rows
            if rows == 1 or rows * len(pieces(width, lanes)) <= registers
            if rows <= max(1, problem.rows)
            for tasks in task_counts(hardware)
            for split in (("outputs", "rows") if tasks > 1 else ("outputs",))
            for outer in ("rows", "outputs")
            for chunks in column_chunks(problem, hardware, rows, 2 if GROUPS[kind] == 2 else 1)
            if chunks == 1 or split == "outputs"
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        kind = self.kind(problem, hardware)
        assert kind is not None
        group = GROUPS[kind]
        rows, width, tasks = int(config["rows"]), int(config["width"]), int(config["tasks"])
        lanes, bytes_of_x = lanes_of(hardware), 2 if group == 2 else 1
        height = -(-width // 4) * 4
        tiles, block_rows = row_tiles(problem, rows), -(-problem.n // width)
        dense = problem.form == "dense"
        blocks, bw = (block_rows, problem.k) if dense else (problem.nnzb, problem.block[1])
        steps = -(-bw // group)
        units = blocks * block_units(rows, height, steps, lanes, HIDDEN_LOOP)
        units += block_rows * (TILE + store_units(problem, rows, width, lanes))
        by_rows, chunks = config["split"] == "rows", int(config["chunks"])
        units += (chunks - 1) * block_rows * (CHUNK + store_units(problem, rows, width, lanes))
        share = even(tiles if by_rows else block_rows, tasks)
        weight_bytes = float(blocks * (height * steps * group * itemsize(problem.dtype) + 2))
        weight_held = weight_bytes if by_rows else weight_bytes / tasks
        row_bytes = float(bytes_of_x * problem.k)
        x_held = row_bytes * (problem.rows / tasks if by_rows else problem.rows)
        x_tile = row_bytes * rows
        if not dense and comes_from_memory(weight_bytes, problem.m, rows):
            x_held = x_tile = held_beside(problem, rows, bytes_of_x, chunks)
        x_bytes = float(blocks * problem.rows * max(bytes_of_x * bw, 64))  # a cache line at least
        if config["outer"] == "rows":
            traffic = [
                (weight_bytes * tiles, weight_held, weight_bytes),
                (x_bytes, x_tile),
            ]
        else:
            # No cache guesses where the next block reads.
            strewn = x_bytes if dense else 2 * x_bytes
            traffic = [
                (weight_bytes * (tasks if by_rows else 1), weight_held, weight_bytes),
                (strewn, x_held),
            ]
        multiply = seconds(hardware, share, tiles * units, traffic, problem.dtype, group)
        own_rows = tasks == 1 or by_rows
        return multiply + prepare_seconds(problem, tasks, hardware, own_rows=own_rows)

    def packing(self, problem: Problem, config: Config) -> tuple[Hashable, ...]:
        """Words of inputs for panels of one width, and chunks of them where columns are cut."""
        return "words", config["width"], *([config["chunks"]] if config["chunks"] != 1 else ())

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Round or quantise the weight where it is not yet, pack it, generate the kernel."""
        from bscompile.targets.kernels.code import narrow

        product = product_of(self.kind(problem, hardware))
        tasks, width, chunks = (int(config[key]) for key in ("tasks", "width", "chunks"))
        layout = (width, product.group, product.narrowest, tasks, 1, chunks)
        if problem.dtype == "bfloat16":
            operands = pack_bfloat16(weight, *layout)
        else:
            operands = pack_int8(
                weight,
                *layout,
                dense=problem.form == "dense",
                in_words=product.stored == "int32",
            )
        func = narrow.generate(
            problem,
            operands,
            product=product,
            rows=int(config["rows"]),
            lanes=self._grouped * lanes_of(hardware),
            tasks=tasks,
            split=str(config["split"]),
            outer=str(config["outer"]),
            chunks=chunks,
        )
        return Kernel(func, operands)


class NarrowPairs(NarrowProducts):
    """The same on AArch64's matrix instructions, two rows and two outputs at a time."""

    name = "narrow_pairs"
    _rows = (2, 4, 6, 8)

    def kind(self, problem: Problem, hardware: HardwareSpec) -> str | None:
        """``bfmmla`` or ``usmmla``."""
        for kind, (precision, feature, _) in PAIRS.items():
            if precision == problem.dtype and feature in hardware.features:
                return kind
        return None


#: Kind of product -> (precision, the feature that it needs, inputs of one step), best first.
KINDS = {
    "bf16": ("bfloat16", "avx512_bf16", 2),
    "bfdot": ("bfloat16", "bf16", 2),
    "vnni": ("int8", "avx512_vnni", 4),
    "usdot": ("int8", "i8mm", 4),
    "sdot": ("int8", "asimddp", 4),
}
#: The same for pairs of rows and outputs.
PAIRS = {"bfmmla": ("bfloat16", "bf16", 4), "usmmla": ("int8", "i8mm", 8)}
GROUPS = {kind: group for kind, (_, _, group) in (KINDS | PAIRS).items()} | {"pairs": 2, "plain": 1}


def prepare_seconds(
    problem: Problem, tasks: int, hardware: HardwareSpec, *, own_rows: bool = False
) -> float:
    """Preparing x: float32 work, in a parallel region of its own where there is enough.

    Args:
        problem: The layer.
        tasks: Parallel tasks.
        hardware: The machine.
        own_rows: Whether each task prepares the rows that it multiplies, in the same region.
    """
    elements = problem.rows * problem.k
    ready = min(tasks, max(1, problem.rows)) if own_rows or elements > 1 << 14 else 1
    units = PREPARE[problem.dtype] * elements / lanes_of(hardware)
    alone = seconds(hardware, ready, units, [(4.0 * elements, 4.0 * elements)])
    if own_rows:
        return alone - (hardware.launch_seconds if ready > 1 else 0.0)
    others = elements * (2 if problem.dtype == "bfloat16" else 1) * (1 - 1 / tasks)
    return alone + others / (EXCHANGE * 1e9)


def instruction(precision: str, hardware: HardwareSpec) -> str | None:
    """The kind of product that the machine has for a precision, see code/dot.py; None for none."""
    for kind, (wanted, feature, _) in KINDS.items():
        if precision == wanted and feature in hardware.features:
            return kind
    if precision != "int8":
        return None
    return "pairs" if hardware.machine == "x86_64" and hardware.isa != "neon" else "plain"


def product_of(kind: str | None) -> Product:
    """The product of a kind."""
    from bscompile.targets.kernels.code import dot

    return next(product for product in dot.PRODUCTS if product.kind == kind)

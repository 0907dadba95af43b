"""The template of bfloat16 and int8 layers with small blocks: lanes run over rows of x."""

from __future__ import annotations

from collections.abc import Hashable

from bscompile.dialect import Weight
from bscompile.dialect.precision import itemsize
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.narrow import (
    GROUPS,
    LONGEST_SUM,
    instruction,
    prepare_seconds,
    product_of,
)
from bscompile.targets.kernels.packing_narrow import pack_bfloat16, pack_int8
from bscompile.targets.kernels.roofline import (
    LOOP,
    TILE,
    even,
    lanes_of,
    registers_of,
    row_tiles,
    seconds,
    store_units,
    task_counts,
)

TRANSPOSE = 6.0  # units per vector that goes through a transposition
KINDS = ("bf16", "vnni")  # instructions whose operands are words


class NarrowRows(KernelTemplate):
    """Configuration: ``vectors`` of rows per tile, ``tasks`` and ``split`` (see the kernel)."""

    name = "narrow_rows"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Tiles whose sums fit the registers, where blocks and k are whole words."""
        kind = instruction(problem.dtype, hardware)
        if kind not in KINDS or problem.form != "block_sparse" or problem.k > LONGEST_SUM:
            return ()
        lanes, (bh, bw) = lanes_of(hardware), problem.block
        if problem.k % GROUPS[kind] or bw % GROUPS[kind]:
            return ()
        configs = [
            {"vectors": vectors, "tasks": tasks, "split": split}
            for vectors in (1, 2, 4, 8)
            if vectors * bh <= registers_of(hardware) and vectors * lanes <= problem.rows
            for tasks in task_counts(hardware)
            for split in (("rows", "outputs") if tasks > 1 else ("rows",))
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        kind = instruction(problem.dtype, hardware)
        assert kind is not None
        group, size = GROUPS[kind], itemsize(problem.dtype)
        vectors, tasks = int(config["vectors"]), int(config["tasks"])
        lanes, (bh, bw) = lanes_of(hardware), problem.block
        rows, words = vectors * lanes, problem.k // group
        tiles, block_rows = row_tiles(problem, rows), -(-problem.n // bh)
        by_rows = config["split"] == "rows"
        units = problem.nnzb * (bw / group * max(bh * vectors, vectors + 0.5 * bh) + LOOP)
        units += block_rows * (bh * vectors + 0.2 * TILE)
        units += TRANSPOSE * words * vectors * (1 if by_rows else tasks)
        units += problem.n * vectors * TRANSPOSE + store_units(problem, rows, problem.n, lanes)
        weight_bytes = float(problem.nnzb * (bh * bw * size + 4))
        weight_held = weight_bytes if by_rows else weight_bytes / tasks
        column_bytes = 4.0 * problem.nnzb * (bw // group) * rows
        traffic = [
            (weight_bytes * tiles, weight_held),
            (column_bytes * tiles, 4.0 * words * rows),
        ]
        share = even(tiles if by_rows else block_rows, tasks)
        multiply = seconds(hardware, share, tiles * units, traffic, problem.dtype, group)
        return multiply + prepare_seconds(problem, tasks, hardware)

    def packing(self, problem: Problem, config: Config) -> tuple[Hashable, ...]:
        """Words of inputs, as narrow reads them, too."""
        return "words", problem.block[0]

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Round or quantise the weight where it is not yet, pack it, generate the kernel."""
        from bscompile.targets.kernels.code import narrow_rows

        product, tasks = product_of(instruction(problem.dtype, hardware)), int(config["tasks"])
        layout = (problem.block[0], product.group, product.narrowest, tasks)
        if problem.dtype == "bfloat16":
            operands = pack_bfloat16(weight, *layout)
        else:
            operands = pack_int8(weight, *layout, dense=False, in_words=True)
        func = narrow_rows.generate(
            problem,
            operands,
            product=product,
            vectors=int(config["vectors"]),
            lanes=lanes_of(hardware),
            tasks=tasks,
            split=str(config["split"]),
        )
        return Kernel(func, operands)

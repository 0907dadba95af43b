"""The template of bfloat16 and int8 layers with small blocks: lanes run over rows of x."""

from __future__ import annotations

from collections.abc import Hashable

from bscompile.dialect import Weight
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.narrow import (
    GROUPS,
    LONGEST_SUM,
    instruction,
    prepare_seconds,
    product_of,
)
from bscompile.targets.kernels.packing_narrow import pack_bfloat16, pack_int8
from bscompile.targets.kernels.roofline import lanes_of
from bscompile.targets.kernels.row_lanes import configurations, expected_seconds

KINDS = ("bf16", "vnni")  # instructions whose operands are words


class NarrowRows(KernelTemplate):
    """Configuration: ``vectors`` of rows per tile, ``tasks`` and ``split`` (see the kernel)."""

    name = "narrow_rows"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Tiles whose sums fit the registers, where blocks and k are whole words."""
        kind = instruction(problem.dtype, hardware)
        if kind not in KINDS or problem.form != "block_sparse" or problem.k > LONGEST_SUM:
            return ()
        if problem.k % GROUPS[kind] or problem.block[1] % GROUPS[kind]:
            return ()
        configs = configurations(problem, hardware)
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call, with those of preparing x."""
        kind = instruction(problem.dtype, hardware)
        assert kind is not None
        multiply = expected_seconds(
            problem, config, hardware, precision=problem.dtype, group=GROUPS[kind]
        )
        tasks = int(config["tasks"])
        own_rows = tasks == 1 or config["split"] == "rows"
        return multiply + prepare_seconds(problem, tasks, hardware, own_rows=own_rows)

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

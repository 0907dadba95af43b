"""Templates for vectors whose length the processor tells when it runs: SVE and RVV.

What a length costs is reckoned for the shortest one, ``vector_bytes`` of the machine.
"""

from __future__ import annotations

import numpy as np

from bscompile.dialect import Weight, dense_weight
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Array, Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.kernels.packing import Operands, balance, pack_block_rows
from bscompile.targets.kernels.roofline import (
    LOOP,
    TILE,
    epilogue_units,
    even,
    lanes_of,
    row_tiles,
    seconds,
    task_counts,
)

_BROADCAST = 0.5  # units of bringing one input into every lane
DENSE_BLOCK = (64, 64)  # (outputs, inputs) that a dense weight is packed in


class ScalableTemplate(KernelTemplate):
    """Configuration: ``rows`` per tile, ``group`` of registers, ``tasks`` and ``split``.

    Args:
        form: The form that it executes: ``block_sparse`` or ``dense``.
        base: Float32 lanes of one register where vscale is one: 4 for SVE, 2 for RVV.
        groups: Registers that one instruction may work on.
    """

    def __init__(self, form: str, base: int, groups: tuple[int, ...] = (1,)) -> None:
        self.name = f"{form}_scalable"
        self._form, self._base, self._groups = form, base, groups

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Register tiles that fit the machine, the cheapest by cost first."""
        if problem.form != self._form or problem.dtype != "float32":
            return ()
        configs = [
            {"rows": rows, "group": group, "tasks": tasks, "split": split}
            for group in self._groups
            # SVE multiplies by lanes of its first eight registers only.
            for rows in ((1, 2, 4) if self._base == 4 else (1, 2, 4, 6, 8, 12))
            if rows * group + group <= 24 and rows <= max(1, problem.rows)
            for tasks in task_counts(hardware)
            for split in (("outputs", "rows") if tasks > 1 else ("outputs",))
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        rows, group, tasks = int(config["rows"]), int(config["group"]), int(config["tasks"])
        (bh, bw), blocks = self._blocks(problem)
        tiles, block_rows = row_tiles(problem, rows), -(-problem.n // bh)
        vectors = -(-bh // (group * lanes_of(hardware)))
        step = max(rows * group, group + _BROADCAST * rows)
        units = vectors * blocks * (bw * step + LOOP)
        units += block_rows * (TILE + rows * vectors * group * (2.0 + epilogue_units(problem)))
        by_rows = config["split"] == "rows"
        share = even(tiles if by_rows else block_rows, tasks)
        weight_bytes = 4.0 * blocks * (bh * bw + 1)
        traffic = [
            (weight_bytes * tiles, weight_bytes if by_rows else weight_bytes / tasks),
            (4.0 * blocks * problem.rows * max(bw, 16) * vectors, 4.0 * problem.k * rows),
        ]
        return seconds(hardware, share, tiles * units, traffic)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the weight and generate the kernel."""
        from bscompile.targets.kernels.code import scalable

        tasks = int(config["tasks"])
        if self._form == "dense":
            operands = pack_dense(dense_weight(weight), self._blocks(problem)[0], tasks)
        else:
            assert isinstance(weight, BlockSparseMatrix)
            operands = pack_block_rows(weight, tasks)
        func = scalable.generate(
            problem,
            operands,
            rows=int(config["rows"]),
            lanes=self._base * int(config["group"]),
            tail=lanes_of(hardware),
            tasks=tasks,
            split=str(config["split"]),
            quads=self._base == 4,
        )
        return Kernel(func, operands)

    def _blocks(self, problem: Problem) -> tuple[tuple[int, int], int]:
        """Shape and number of the blocks; a dense weight is one whose blocks all live."""
        if self._form == "block_sparse":
            return problem.block, problem.nnzb
        bh, bw = min(DENSE_BLOCK[0], problem.n), min(DENSE_BLOCK[1], problem.k)
        return (bh, bw), -(-problem.n // bh) * -(-problem.k // bw)


def pack_dense(weight: Array, block: tuple[int, int], tasks: int) -> Operands:
    """W [n, k] as block rows in which every block lives, in the layout of pack_block_rows."""
    (n, k), (bh, bw) = weight.shape, block
    rows, columns = -(-n // bh), -(-k // bw)
    padded = np.zeros((rows * bh, k), weight.dtype)
    padded[:n] = weight
    starts = np.minimum(np.arange(columns) * bw, k - bw)
    values = np.stack([padded[:, start : start + bw] for start in starts])  # [columns, n', bw]
    over = columns * bw - k
    values[-1, :, :over] = 0  # what the last block covers twice counts once
    values = values.reshape(columns, rows, bh, bw).transpose(1, 0, 3, 2)
    return (
        ("values", np.ascontiguousarray(values.reshape(rows * columns, bw, bh))),
        ("starts", np.tile(starts, rows).astype(np.int32)),
        ("indptr", np.arange(0, (rows + 1) * columns, columns, dtype=np.int32)),
        ("bounds", balance(np.full(rows, columns), tasks)),
    )

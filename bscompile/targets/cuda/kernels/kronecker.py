"""The template of factorized layers: one launch, Z in shared memory, zero entries of S skipped."""

from __future__ import annotations

import numpy as np

from bscompile.dialect import Weight
from bscompile.dialect.precision import itemsize, stored_dtype
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.cuda.kernels.packing import Operands
from bscompile.targets.cuda.kernels.roofline import FMA_SHARE, Work, ends_bytes, seconds
from bscompile.targets.cuda.kernels.steps import HALVES

_THREADS = 256


class KroneckerTemplate(KernelTemplate):
    """Configuration: ``rows`` of a thread block, ``chunks`` of the outputs (see the kernel)."""

    name = "kronecker"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """As many rows as leave Z room in shared memory, the cheapest by cost first."""
        if problem.form != "kronecker" or problem.dtype not in ("float32", *HALVES):
            return ()
        configs = [
            {"rows": rows, "chunks": chunks}
            for rows in (1, 2, 4, 8, 16)
            if rows < 2 * problem.rows
            if 4 * rows * self._held(problem) <= hardware.group_bytes
            for chunks in (1, 2, 4, 8, 16, 32)
            if chunks <= problem.n // problem.block[0]
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    @staticmethod
    def _held(problem: Problem) -> int:
        """Numbers of Z for one row of x."""
        (bh, bw), rank = problem.block, problem.rank
        return problem.k // bw * rank * bh

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        rows, chunks, (bh, bw) = int(config["rows"]), int(config["chunks"]), problem.block
        tiles = -(-problem.rows // rows)
        live = problem.nnzb * problem.rank
        multiplied = tiles * rows * (chunks * self._held(problem) * bw + live * bh)
        size = itemsize(problem.dtype)
        coefficients = problem.nnzb * (problem.rank * size + 4.0)
        work = Work(
            blocks=tiles * chunks,
            operations=2.0 * multiplied,
            # Both factors of a product are read for it: half of what a tile in registers draws.
            rate=hardware.peak_gflops["float32"] * 1e9 * FMA_SHARE / 2,
            near_bytes=tiles * (coefficients + chunks * rows * problem.k * 4.0),
            far_bytes=coefficients + problem.rank * bh * bw * size + ends_bytes(problem),
            depth=live / max(1, problem.n // bh) / 16,
        )
        return seconds(hardware, work)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the live coefficients and generate the kernel."""
        from bscompile.targets.cuda.kernels.code import kronecker

        assert isinstance(weight, KroneckerSum)
        operands = pack_factors(weight, problem.dtype)
        func = kronecker.kernel(
            problem,
            operands,
            rows=int(config["rows"]),
            chunks=int(config["chunks"]),
            threads=_THREADS,
        )
        return Kernel(func, operands)


def pack_factors(weight: KroneckerSum, dtype: str) -> Operands:
    """The live coefficients in block-row order and the transposed factors.

    Returns:
        coefficients [nnz, r], indices int32 [nnz], indptr int32 [block rows + 1] and
        factors [r, bw, bh].
    """
    support = weight.support
    rows, cols = np.nonzero(support)
    coefficients = np.ascontiguousarray(weight.a[:, rows, cols].T)
    if not len(rows):  # TVM buffers have at least one element
        coefficients, cols = np.zeros((1, weight.rank), weight.a.dtype), np.zeros(1, np.int64)
    kind = stored_dtype(dtype)
    return (
        ("coefficients", coefficients.astype(kind, copy=False)),
        ("indices", cols.astype(np.int32)),
        ("indptr", np.concatenate([[0], np.cumsum(support.sum(axis=1))]).astype(np.int32)),
        ("factors", weight.b.transpose(0, 2, 1).astype(kind, order="C")),
    )

"""The template of factorized layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bscompile.dialect import Weight
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.gpu.kernels.linear import (
    multiplied_in,
    panel_configs,
    panel_seconds,
    tile_of,
)
from bscompile.targets.gpu.kernels.packing import pack_factors
from bscompile.targets.gpu.kernels.roofline import Work, seconds
from bscompile.targets.gpu.limits import fits, storage

_WIDEST = 32  # outputs of a panel of the first launch
_SPANS = (1, 2, 4, 8, 16, 32)


class KroneckerTemplate(KernelTemplate):
    """Configuration: the first launch's tile; ``strip`` rows a thread, ``span`` of the second."""

    name = "kronecker"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """The best tile of the first launch with every shape of the second, cheapest first."""
        if problem.form != "kronecker" or problem.m is None or problem.block[0] > 128:
            return ()
        if not storage(problem.dtype, hardware):
            return ()
        first = self._products(problem)
        width = min(_WIDEST, first.n)
        tiles = [  # few products, of which all others follow: not in half precision
            c
            for c in panel_configs(first, width, hardware)
            if c["nest"] == "tiles" and multiplied_in(c) == "float32"
        ]
        if not tiles:
            return ()
        tiles.sort(key=lambda c: self._first(problem, c, hardware))
        configs = [
            {**tile, "strip": strip, "span": span}
            for tile in tiles[:2]
            for strip in (1, 2, 4)
            for span in _SPANS
            if strip * span < 2 * problem.rows + 4
            and fits(hardware, span * problem.block[0], 0)
            and (span * problem.block[0] >= 16 or span == _SPANS[-1] or span >= problem.rows)
        ]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware)))

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call."""
        bh, rank, m = problem.block[0], problem.rank, problem.rows
        strip, span = int(config["strip"]), int(config["span"])
        panels = problem.n // bh
        live = problem.nnzb / panels
        strips = -(-m // (strip * span))
        operations = live * (2 + rank * (1 + 3 * strip)) + 4 * strip
        traffic = 4.0 * m * problem.n + 4.0 * m * panels * live * rank * bh
        traffic += problem.nnzb * (rank * np.dtype(problem.dtype).itemsize + 4.0) * strips
        second = Work(panels * strips, span * bh, operations, 0, traffic)
        return self._first(problem, config, hardware) + seconds(hardware, second)

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the live coefficients and generate both launches."""
        from bscompile.targets.gpu.kernels.code.kronecker import generate_kronecker

        assert isinstance(weight, KroneckerSum)
        operands = pack_factors(weight, int(config["width"]), storage(problem.dtype, hardware))
        func = generate_kronecker(
            problem, operands, tile_of(config), int(config["strip"]), int(config["span"])
        )
        return Kernel(func, operands)

    def _products(self, problem: Problem) -> Problem:
        """The first launch as a dense problem."""
        (bh, bw), rank = problem.block, problem.rank
        m = problem.rows * (problem.k // bw)
        return replace(problem, form="dense", m=m, n=rank * bh, k=bw, epilogue=(), block=(1, 1))

    def _first(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        first = self._products(problem)
        panels = -(-first.n // int(config["width"]))
        weight_bytes = 4.0 * first.n * first.k
        return panel_seconds(first, config, hardware, panels, first.k, weight_bytes)

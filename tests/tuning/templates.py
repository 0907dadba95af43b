"""Kernel templates that misbehave; the worker process imports them by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from bscompile.dialect import dense_weight
from bscompile.targets.base import KernelTemplate
from bscompile.targets.kernels.dense import DenseTemplate


@dataclass(frozen=True)
class Misbehaving(KernelTemplate):
    """The dense template, expected to be very fast, that misbehaves when it is built."""

    how: str

    @property
    def name(self):
        return f"dense_{self.how}"

    def space(self, problem, hardware):
        return DenseTemplate().space(problem, hardware)[:1]

    def cost(self, problem, config, hardware):
        return 1e-9

    def build(self, problem, weight, config, hardware):
        if self.how == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "hangs":
            time.sleep(600)
        if self.how == "raises":
            raise RuntimeError("first line\nno such tile")
        weight = dense_weight(weight).copy()
        weight[1, 2] = float("nan") if self.how == "nan" else weight[1, 2] + 0.5
        return DenseTemplate().build(problem, weight, config, hardware)

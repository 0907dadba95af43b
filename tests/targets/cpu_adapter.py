"""Kernels of the cpu target, run by this processor."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from bscompile.dialect import evaluate
from bscompile.dialect.precision import precision_of
from tests.targets.narrow_running import load_kernel
from tests.targets.numeric_suite import Adapter


class CpuAdapter(Adapter):
    """This machine's widest instruction set, with what it has for narrow weights."""

    target = "cpu"
    dtypes = ("float32", "float16", "bfloat16", "int8")

    def missing(self):
        return ""

    def run(self, calls):
        from bscompile.targets.cpu.hardware import INSTRUCTION_SETS

        assert self.context.hardware.isa in INSTRUCTION_SETS
        hardware = self.context.hardware.extended(*self.dtypes)
        return [
            load_kernel(call.kernel, hardware)(call.inputs[0], call.inputs[1:], call.shape)
            for call in calls
        ]

    def reference(self, template, op, x, tensors):
        if template.startswith("narrow") and precision_of(op) == ml_dtypes.bfloat16:
            x = x.astype(ml_dtypes.bfloat16).astype(np.float32)  # it rounds x as well
        return evaluate(op, x, tensors)

    def rounding(self, template, config, terms):
        # What lies between the two steps is rounded once; the sums themselves are float32.
        if template == "narrow_kronecker":
            return "bfloat16", 1
        return super().rounding(template, config, terms)


ADAPTERS = [CpuAdapter()]

"""Kernels of processors and DSPs that are not this one: one executable for each, run by qemu."""

from __future__ import annotations

import os
from unittest import mock

import ml_dtypes
import numpy as np

from bscompile import targets
from bscompile.dialect import evaluate
from bscompile.formats import BlockSparseMatrix
from tests.targets.numeric_suite import Adapter
from tests.targets.static_running import missing, run_kernels

#: Vector lengths in bits at which code that does not know its own is run.
LENGTHS = (128, 256, 512)


class StaticAdapter(Adapter):
    """A target whose kernels become one static executable.

    Args:
        target: What users type.
        machine: Its processor family.
        dtypes: That its templates take.
        processors: What qemu is to emulate, one run each; all must give the same.
    """

    def __init__(self, target, machine, dtypes, processors=("",)):
        self.target, self.dtypes = target, dtypes
        self._machine, self._processors = machine, processors

    @property
    def context(self):
        return targets.resolve(self.target, None if self.target == "hexagon" else 2)

    def missing(self):
        return missing(self._machine)

    def run(self, calls):
        kernels = [
            (call.kernel.prim_func, _contiguous(call), np.full(call.shape, np.nan, np.float32))
            for call in calls
        ]
        run = run_kernels(self.target, kernels)
        results = []
        for processor in self._processors:
            with mock.patch.dict(os.environ, {"QEMU_CPU": processor} if processor else {}):
                results.append(run([arrays for _, arrays, _ in kernels]))
        for other in results[1:]:
            for got, first in zip(other, results[0], strict=True):
                np.testing.assert_array_equal(got, first)
        return results[0]

    def reference(self, template, op, x, tensors):
        weight = op.weight.values if isinstance(op.weight, BlockSparseMatrix) else op.weight
        if (
            template.startswith("narrow") and weight.dtype == ml_dtypes.bfloat16
        ):  # it rounds x as well
            x = x.astype(ml_dtypes.bfloat16).astype(np.float32)
        return evaluate(op, x, tensors)


def _contiguous(call):
    return [np.ascontiguousarray(array) for array in call.arrays]


_SVE = [f"max,sve-default-vector-length={bits // 8}" for bits in LENGTHS]
_SME = [f"max,sme-default-vector-length={bits // 8}" for bits in LENGTHS]
_RVV = [f"rv64,v=true,vlen={bits},vext_spec=v1.0" for bits in LENGTHS]

ADAPTERS = [
    StaticAdapter("cpu:aarch64", "aarch64", ("float32", "int8")),
    # Its float32 kernels are those of cpu:aarch64, as test_static_narrow.py holds.
    StaticAdapter("cpu:aarch64-i8mm", "aarch64", ("float16", "bfloat16", "int8")),
    StaticAdapter("cpu:aarch64-sve", "aarch64", ("float32", "int8"), _SVE),
    StaticAdapter("cpu:aarch64-sme", "aarch64", ("float32",), _SME),
    StaticAdapter("cpu:riscv64", "riscv64", ("float32", "int8")),
    StaticAdapter("cpu:riscv64-vla", "riscv64", ("float32", "int8"), _RVV),
    StaticAdapter("hexagon", "hexagon", ("float32", "int8")),
]

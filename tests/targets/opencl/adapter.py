"""Kernels of the opencl target, run on the device that OpenCL offers here."""

from __future__ import annotations

import numpy as np

from bscompile.devices import opencl as opencl_device
from bscompile.errors import TargetError
from tests.targets.numeric_suite import Adapter


def missing_device():
    """Why OpenCL code cannot be run here; empty when it can."""
    try:
        opencl_device.limits()
    except TargetError as error:
        return str(error)
    return ""


class OpenCLAdapter(Adapter):
    """One program for each kernel."""

    target = "opencl"
    dtypes = ("float32", "float16")

    def missing(self):
        return missing_device()

    def run(self, calls):
        from bscompile.targets.opencl.kernel import compile_kernel

        hardware = self.context.hardware
        return [
            compile_kernel(call.kernel.prim_func, hardware).run(
                call.arrays, np.full(call.shape, np.nan, np.float32)
            )
            for call in calls
        ]


ADAPTERS = [OpenCLAdapter()]

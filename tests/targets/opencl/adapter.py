"""Kernels of the opencl target, run on the device that OpenCL offers here."""

from __future__ import annotations

import numpy as np

from bscompile import opencl_device
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
    """Each kernel in a program of its own; equal sources are compiled once."""

    target = "opencl"
    dtypes = ("float32", "float16")

    def missing(self):
        return missing_device()

    def run(self, calls):
        runner = KernelRunner(self.context.hardware)
        return [runner.run(call.kernel.prim_func, call.arrays, call.shape) for call in calls]


class KernelRunner:
    """Compiles kernels and calls them.

    Args:
        hardware: What they were made for.
    """

    def __init__(self, hardware):
        self.hardware = hardware
        self.cl = opencl_device.load()
        self.context = self.cl.Context([opencl_device.find()])
        self.queue = self.cl.CommandQueue(self.context)
        self.programs = {}

    def run(self, func, arrays, shape):
        """y of a kernel; everything that it should write is NaN before."""
        from bscompile.targets.gpu.source import device_code
        from bscompile.targets.gpu.workspace import lift_workspace
        from bscompile.targets.opencl.hardware import tvm_target

        func, workspace = lift_workspace(func)
        code = device_code({"kernel": func}, tvm_target(self.hardware))
        y = np.full(shape, np.nan, np.float32)
        spaces = [np.full([int(s) for s in b.shape], np.nan, np.float32) for b in workspace]
        memory = [self._buffer(array) for array in (*arrays, y, *spaces)]
        for launch in code.launches.kernels["kernel"]:
            kernel = self.cl.Kernel(self._program(code.sources[launch.entry]), launch.entry)
            kernel.set_args(*(memory[i] for i in launch.arguments))
            size = [g * b for g, b in zip(launch.grid, launch.block, strict=True)]
            self.cl.enqueue_nd_range_kernel(self.queue, kernel, size, launch.block)
        self.cl.enqueue_copy(self.queue, y, memory[len(arrays)])
        return y

    def _buffer(self, array):
        flags = self.cl.mem_flags
        held = np.ascontiguousarray(array)
        return self.cl.Buffer(self.context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=held)

    def _program(self, source):
        if source not in self.programs:
            self.programs[source] = self.cl.Program(self.context, source).build()
        return self.programs[source]


ADAPTERS = [OpenCLAdapter()]

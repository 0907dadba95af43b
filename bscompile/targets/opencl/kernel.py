"""One kernel alone on this machine's OpenCL device: what the tuner times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bscompile.devices import opencl as opencl_device
from bscompile.targets.base import Array, HardwareSpec
from bscompile.targets.gpu.source import device_code
from bscompile.targets.gpu.workspace import lift_workspace
from bscompile.targets.lone_kernel import LoneKernel
from bscompile.targets.opencl.hardware import tvm_target


def compile_kernel(prim_func: Any, hardware: HardwareSpec) -> OpenCLKernel:
    """Compile one kernel; it is called as a tvm.runtime.Module with the function ``kernel`` is."""
    return OpenCLKernel(prim_func, hardware)


class OpenCLKernel(LoneKernel):
    """A compiled kernel; the last of its arguments is y.

    Args:
        prim_func: A tvm.tirx.PrimFunc with thread bindings.
        hardware: What it was made for.
    """

    def __init__(self, prim_func: Any, hardware: HardwareSpec) -> None:
        func, self._workspace = lift_workspace(prim_func)
        code = device_code({"kernel": func}, tvm_target(hardware))
        self._cl = opencl_device.load()
        self._context = self._cl.Context([opencl_device.find()])
        self._queue = self._cl.CommandQueue(self._context)
        self._launches = code.launches.kernels["kernel"]
        self._kernels = [
            self._cl.Kernel(opencl_device.program(self._context, source), launch.entry)
            for launch in self._launches
            for source in [code.sources[launch.entry]]
        ]

    def run(self, arrays: Sequence[Array], y: Array) -> Array:
        """Call it once; arguments and result as of ``LoneKernel.run``."""
        memory = self._bind([*arrays, y])
        self._start()
        result = np.empty_like(y)
        self._cl.enqueue_copy(self._queue, result, memory[len(arrays)])
        return result

    def times(self, arrays: Sequence[Array], number: int, repeat: int) -> list[float]:
        """Seconds of one call by this machine's clock."""
        held = self._bind(arrays)
        results = []
        for _ in range(repeat):
            started = time.perf_counter()
            for _ in range(number):
                self._start()
            self._queue.finish()
            results.append((time.perf_counter() - started) / number)
        held.clear()  # kernels do not keep their arguments alive
        return results

    def _bind(self, arrays: Sequence[Array]) -> list[Any]:
        """Bring the arguments to the device; what passes between launches is NaN there."""
        spaces = [np.full([int(n) for n in b.shape], np.nan, np.float32) for b in self._workspace]
        memory = [self._buffer(array) for array in (*arrays, *spaces)]
        for kernel, launch in zip(self._kernels, self._launches, strict=True):
            kernel.set_args(*(memory[i] for i in launch.arguments))
        return memory

    def _buffer(self, array: Array) -> Any:
        flags = self._cl.mem_flags
        held = np.ascontiguousarray(array)
        return self._cl.Buffer(self._context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=held)

    def _start(self) -> None:
        for kernel, launch in zip(self._kernels, self._launches, strict=True):
            size = [g * b for g, b in zip(launch.grid, launch.block, strict=True)]
            self._cl.enqueue_nd_range_kernel(self._queue, kernel, size, launch.block)

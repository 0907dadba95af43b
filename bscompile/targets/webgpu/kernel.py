"""One kernel alone on this machine's WebGPU adapter: what the tuner times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from bscompile.devices.webgpu_device import Device, workgroups
from bscompile.targets.base import Array, HardwareSpec
from bscompile.targets.gpu.source import device_code
from bscompile.targets.gpu.workspace import lift_workspace
from bscompile.targets.lone_kernel import LoneKernel
from bscompile.targets.webgpu.hardware import tvm_target
from bscompile.targets.webgpu.words import fit_kernel

Record = Callable[[Any], None]  # puts one launch into a compute pass


def compile_kernel(prim_func: Any, hardware: HardwareSpec) -> WebGPUKernel:
    """Compile one kernel; it is called as a tvm.runtime.Module with the function ``kernel`` is."""
    return WebGPUKernel(prim_func, hardware)


@cache
def _device(*features: str) -> Device:
    """One device for all kernels of a process."""
    return Device(features, {})


class WebGPUKernel(LoneKernel):
    """A compiled kernel; the last of its arguments is y.

    Args:
        prim_func: A tvm.tirx.PrimFunc with thread bindings.
        hardware: What it was made for.

    Raises:
        TargetError: wgpu is not installed, or there is no adapter.
        ArtifactError: the adapter lacks half precision, and the kernel has it.
    """

    def __init__(self, prim_func: Any, hardware: HardwareSpec) -> None:
        func, self._workspace = lift_workspace(prim_func)
        func = fit_kernel(func.with_attr("global_symbol", "kernel"))
        code = device_code({"kernel": func}, tvm_target(hardware))
        half = any("enable f16;" in source for source in code.sources.values())
        self._device = _device(*(["float16"] if half else []))
        self._launches = code.launches.kernels["kernel"]
        with self._device.refusing("kernel"):
            self._pipelines = {
                entry: self._device.pipeline(entry, source)
                for entry, source in code.sources.items()
            }

    def run(self, arrays: Sequence[Array], y: Array) -> Array:
        """Call it once; arguments and result as of ``LoneKernel.run``."""
        with self._bound([*arrays, y]) as (memory, records):
            encoder = self._device.encoder()
            one_pass = encoder.begin_compute_pass()
            for record in records:
                record(one_pass)
            one_pass.end()
            readback = self._device.readback(y.nbytes)
            encoder.copy_buffer_to_buffer(memory[len(arrays)], 0, readback, 0, y.nbytes)
            self._device.submit(encoder)
            return np.frombuffer(self._device.read(readback), y.dtype).reshape(y.shape)

    def times(self, arrays: Sequence[Array], number: int, repeat: int) -> list[float]:
        """Seconds of one call by the device's own clock."""
        with self._bound(arrays) as (_, records):
            return [
                sum(sum(self._device.seconds(records)) for _ in range(number)) / number
                for _ in range(repeat)
            ]

    @contextmanager
    def _bound(self, arrays: Sequence[Array]) -> Iterator[tuple[list[Any], list[Record]]]:
        """The arguments on the device, what passes between launches NaN, and the launches."""
        device = self._device
        spaces = [np.full([int(n) for n in b.shape], np.nan, np.float32) for b in self._workspace]
        with device.refusing("the call"):
            memory = []
            for array in (*arrays, *spaces):
                memory.append(device.storage(array.nbytes))
                device.write(memory[-1], array)
            yield memory, [self._record(launch, memory) for launch in self._launches]
            for buffer in memory:
                buffer.destroy()

    def _record(self, launch: Any, memory: Sequence[Any]) -> Record:
        device, pipeline = self._device, self._pipelines[launch.entry]
        size, bound = workgroups(launch.entry, launch.grid)
        taken = [*(memory[i] for i in launch.arguments), device.uniform(bound)]
        bindings = device.bindings(pipeline, [{"buffer": buffer} for buffer in taken])

        def record(compute_pass: Any) -> None:
            compute_pass.set_pipeline(pipeline)
            compute_pass.set_bind_group(0, bindings)
            compute_pass.dispatch_workgroups(*size)

        return record

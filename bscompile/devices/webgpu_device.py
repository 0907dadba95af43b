"""A WebGPU device by wgpu-py, which drives Vulkan, Metal or Direct3D 12."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.devices import webgpu as webgpu_device
from bscompile.devices.webgpu import DEFAULT_LIMITS, FEATURES, MOST_WORKGROUPS
from bscompile.errors import ArtifactError

Array = npt.NDArray[Any]


class Device:
    """A device, and the few things that a program does with it.

    Args:
        features: What the code needs, as the manifest names it.
        limits: What the code needs of them, as wgpu spells them.

    Raises:
        TargetError: wgpu is not installed, or there is no adapter.
        ArtifactError: it lacks a feature or a limit.
    """

    def __init__(self, features: Sequence[str], limits: Mapping[str, int]) -> None:
        self._wgpu, self._adapter = webgpu_device.load(), webgpu_device.find()
        self.name = webgpu_device.name_of(self._adapter)
        wanted = [FEATURES.get(feature, feature) for feature in features]
        for feature in wanted:
            if feature not in self._adapter.features:
                raise ArtifactError(f"needs the WebGPU feature {feature}, {self.name} lacks it")
        more = {name: size for name, size in limits.items() if size > DEFAULT_LIMITS[name]}
        for name, size in more.items():
            if self._adapter.limits[name] < size:
                has = self._adapter.limits[name]
                raise ArtifactError(f"needs {name} = {size}, {self.name} has {has}")
        self.has_clock = "timestamp-query" in self._adapter.features
        clock = ["timestamp-query"] if self.has_clock else []
        with self.refusing("the device"):
            self._device = self._adapter.request_device_sync(
                required_features=[*wanted, *clock], required_limits=more
            )

    @contextlib.contextmanager
    def refusing(self, place: str) -> Iterator[None]:
        """What WebGPU finds wrong inside, as an error of one line."""
        try:
            yield
        except (self._wgpu.GPUError, self._wgpu.classes.GPUPipelineError, RuntimeError) as error:
            lines = (line.strip() for line in str(error).splitlines())
            first = next((line for line in lines if line), type(error).__name__)
            raise ArtifactError(f"{place}: {first}") from error

    def storage(self, size: int) -> Any:
        """Memory for shaders; a binding is a multiple of 4 bytes and never empty."""
        usage = self._wgpu.BufferUsage
        return self._device.create_buffer(
            size=max(16, -(-size // 4) * 4),
            usage=usage.STORAGE | usage.COPY_SRC | usage.COPY_DST,
        )

    def readback(self, size: int) -> Any:
        """Memory that results are copied to and mapped from."""
        usage = self._wgpu.BufferUsage
        return self._device.create_buffer(size=max(4, size), usage=usage.MAP_READ | usage.COPY_DST)

    def uniform(self, value: int) -> Any:
        """Memory that holds one unsigned number."""
        usage = self._wgpu.BufferUsage
        return self._device.create_buffer_with_data(
            data=np.array([value, 0, 0, 0], np.uint32), usage=usage.UNIFORM
        )

    def write(self, buffer: Any, array: Array) -> None:
        """Fill a buffer from its start."""
        if not array.size:
            return
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if raw.size % 4:
            raw = np.pad(raw, (0, -raw.size % 4))
        self._device.queue.write_buffer(buffer, 0, raw)

    def pipeline(self, name: str, source: str) -> Any:
        """Compile one function of WGSL."""
        module = self._device.create_shader_module(label=name, code=source)
        return self._device.create_compute_pipeline(
            layout="auto", compute={"module": module, "entry_point": name}
        )

    def bindings(self, pipeline: Any, resources: Sequence[Mapping[str, Any]]) -> Any:
        """Buffers for the arguments of a pipeline, in order."""
        return self._device.create_bind_group(
            layout=pipeline.get_bind_group_layout(0),
            entries=[{"binding": i, "resource": r} for i, r in enumerate(resources)],
        )

    def encoder(self) -> Any:
        """What commands are recorded with."""
        return self._device.create_command_encoder()

    def submit(self, encoder: Any) -> None:
        """Start what was recorded."""
        self._device.queue.submit([encoder.finish()])

    def read(self, buffer: Any) -> memoryview:
        """Wait, and copy what a readback buffer holds."""
        buffer.map_sync("READ")
        try:
            content: memoryview = buffer.read_mapped(copy=True)
        finally:
            buffer.unmap()
        return content

    def seconds(self, passes: Sequence[Any]) -> list[float]:
        """Run each function on a compute pass of its own and give its time on the device."""
        usage = self._wgpu.BufferUsage
        count = 2 * len(passes)
        queries = self._device.create_query_set(type="timestamp", count=count)
        resolved = self._device.create_buffer(
            size=8 * count, usage=usage.QUERY_RESOLVE | usage.COPY_SRC
        )
        encoder = self.encoder()
        for i, record in enumerate(passes):
            at = {"beginning_of_pass_write_index": 2 * i, "end_of_pass_write_index": 2 * i + 1}
            one = encoder.begin_compute_pass(timestamp_writes={"query_set": queries, **at})
            record(one)
            one.end()
        encoder.resolve_query_set(queries, 0, count, resolved, 0)
        self.submit(encoder)
        ticks = np.frombuffer(self._device.queue.read_buffer(resolved), np.uint64)
        nanoseconds = (ticks[1::2] - ticks[::2]).astype(np.float64)
        return [float(time) * 1e-9 for time in nanoseconds]

    def close(self) -> None:
        """Free everything made on it."""
        self._device.destroy()


def workgroups(name: str, grid: Sequence[int]) -> tuple[tuple[int, int, int], int]:
    """What to dispatch for a grid, and the bound of x that the shader is told.

    A long x is folded into z, which the generated code unfolds; its guard lets the bound itself
    pass, so the bound is the last x and not their number.

    Raises:
        ArtifactError: the grid is larger than WebGPU dispatches.
    """
    x, y, z = grid
    if z != 1 or y > MOST_WORKGROUPS or x > MOST_WORKGROUPS**2:
        raise ArtifactError(f"{name}: a grid of {x} x {y} x {z} workgroups cannot be dispatched")
    layers = math.ceil(x / MOST_WORKGROUPS)
    return (math.ceil(x / layers), y, layers), x - 1

"""Code for WebGPU: WGSL, run by wgpu-py; in browsers the JavaScript loader does the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.artifact import Artifact
from bscompile.artifact.launches import MEMBER as LAUNCHES
from bscompile.artifact.launches import Launches
from bscompile.artifact.program import MEMBER as PROGRAM
from bscompile.artifact.program import Buffer, Program
from bscompile.artifact.shaders import MEMBER as KERNELS
from bscompile.artifact.shaders import split_shaders
from bscompile.devices.webgpu_device import Device, workgroups
from bscompile.errors import ArtifactError, UsageError
from bscompile.runtime.executor import Executor, RefusedError

Array = npt.NDArray[Any]

_ALIGNMENT = 8  # of each output in the readback


@dataclass(frozen=True)
class _Dispatch:
    """One launch, ready to be recorded."""

    kernel: str
    pipeline: Any
    bindings: Any
    workgroups: tuple[int, int, int]

    def record(self, compute_pass: Any) -> None:
        compute_pass.set_pipeline(self.pipeline)
        compute_pass.set_bind_group(0, self.bindings)
        compute_pass.dispatch_workgroups(*self.workgroups)


class WebGPU(Executor):
    """A static program on a WebGPU device: memory, weights and pipelines are made once."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._manifest = artifact.manifest
        self._program = Program.from_json(_member(artifact, PROGRAM))
        self._launches = Launches.from_json(_member(artifact, LAUNCHES))
        self._launches.check(self._program)
        self._device = Device(
            artifact.manifest.features, needed_limits(self._program, self._launches)
        )
        with self._device.refusing("the program"):
            self._memory = [self._device.storage(s.bytes) for s in self._program.storages]
            self._load_params(artifact.weights)
            self._dispatches = list(self._prepare(split_shaders(_member(artifact, KERNELS))))
            self._spans, size = _spans([self._program.buffers[i] for i in self._program.outputs])
            self._readback = self._device.readback(size)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Write the inputs, dispatch every step in one pass, read the outputs."""
        with self._device.refusing("the call"):
            self._write_inputs(inputs)
            encoder = self._device.encoder()
            one_pass = encoder.begin_compute_pass()
            for dispatch in self._dispatches:
                dispatch.record(one_pass)
            one_pass.end()
            for buffer, start in self._spans:
                if buffer.bytes:
                    memory, size = self._memory[buffer.storage], -(-buffer.bytes // 4) * 4
                    encoder.copy_buffer_to_buffer(
                        memory, buffer.offset, self._readback, start, size
                    )
            self._device.submit(encoder)
            content = np.frombuffer(self._device.read(self._readback), np.uint8)
        results = []
        for (buffer, start), spec in zip(self._spans, self._manifest.outputs, strict=True):
            raw = content[start : start + buffer.bytes].view(buffer.dtype)
            results.append(raw.reshape(buffer.shape).astype(spec.dtype))
        return results

    def profile(self, inputs: Sequence[Array], repeats: int) -> list[tuple[str, float]]:
        """Time every launch by the device's own clock, each in a pass of its own."""
        if not self._device.has_clock:
            raise UsageError(f"{self._device.name} has no clock for kernels (timestamp-query)")
        with self._device.refusing("the call"):
            self._write_inputs(inputs)
            records = [dispatch.record for dispatch in self._dispatches]
            rounds = [self._device.seconds(records) for _ in range(repeats + 1)]
        times = np.median(rounds[1:], axis=0)  # the first warms up
        names = [dispatch.kernel for dispatch in self._dispatches]
        return list(zip(names, times.tolist(), strict=True))

    def close(self) -> None:
        """Free the memory on the device."""
        self._dispatches, self._memory = [], []
        self._device.close()

    def _write_inputs(self, inputs: Sequence[Array]) -> None:
        storages, specs = self._program.indices("input"), self._manifest.inputs
        for storage, array, spec in zip(storages, inputs, specs, strict=True):
            held = array.astype(self._dtype(storage), copy=False)
            if array.dtype.kind in "iu" and not np.array_equal(held, array):
                raise RefusedError(f"a number of {spec.name} needs more than 32 bits")
            self._device.write(self._memory[storage], held)

    def _load_params(self, weights: Mapping[str, Array]) -> None:
        storages, params = self._program.indices("param"), self._manifest.params
        if len(storages) != len(params):
            raise ArtifactError(
                f"its program takes {len(storages)} weights, the manifest lists {len(params)}"
            )
        for storage, param in zip(storages, params, strict=True):
            array = weights[param.name].astype(param.used, copy=False)
            if array.nbytes != self._program.storages[storage].bytes:
                raise ArtifactError(f"weight {param.name!r} has another size than in the program")
            self._device.write(self._memory[storage], array)

    def _dtype(self, storage: int) -> str:
        return next(b.dtype for b in self._program.buffers if b.storage == storage)

    def _prepare(self, shaders: Mapping[str, str]) -> Iterator[_Dispatch]:
        pipelines: dict[str, Any] = {}
        bounds: dict[int, Any] = {}
        for step in self._program.steps:
            for launch in self._launches.kernels[step.kernel]:
                entry, (size, bound) = launch.entry, workgroups(launch.entry, launch.grid)
                if entry not in shaders:
                    raise ArtifactError(f"{KERNELS}: the function {entry!r} is missing")
                if entry not in pipelines:
                    pipelines[entry] = self._device.pipeline(entry, shaders[entry])
                if bound not in bounds:
                    bounds[bound] = self._device.uniform(bound)
                taken = [self._resource(step.buffers[i]) for i in launch.arguments]
                resources = [*taken, {"buffer": bounds[bound]}]
                bindings = self._device.bindings(pipelines[entry], resources)
                yield _Dispatch(step.kernel, pipelines[entry], bindings, size)

    def _resource(self, index: int) -> dict[str, Any]:
        buffer = self._program.buffers[index]
        return {"buffer": self._memory[buffer.storage], "offset": buffer.offset}


EXECUTOR = WebGPU


def needed_limits(program: Program, launches: Launches) -> dict[str, int]:
    """What a program needs of the limits that a device may have more or less of."""
    every = [launch for kernel in launches.kernels.values() for launch in kernel]
    largest = _most(-(-storage.bytes // 4) * 4 for storage in program.storages)
    blocks = [launch.block for launch in every]
    return {
        "max-storage-buffer-binding-size": largest,
        "max-buffer-size": largest,
        "max-storage-buffers-per-shader-stage": _most(len(one.arguments) for one in every),
        "max-compute-workgroup-storage-size": _most(one.shared_bytes for one in every),
        "max-compute-invocations-per-workgroup": _most(one.threads for one in every),
        "max-compute-workgroup-size-x": _most(x for x, _, _ in blocks),
        "max-compute-workgroup-size-y": _most(y for _, y, _ in blocks),
        "max-compute-workgroup-size-z": _most(z for _, _, z in blocks),
    }


def _most(numbers: Iterable[int]) -> int:
    return max(numbers, default=0)


def _spans(buffers: Sequence[Buffer]) -> tuple[list[tuple[Buffer, int]], int]:
    """Where each output lies in the readback, and the size of that."""
    spans, end = [], 0
    for buffer in buffers:
        spans.append((buffer, end))
        end += -(-buffer.bytes // _ALIGNMENT) * _ALIGNMENT
    return spans, end


def _member(artifact: Artifact, name: str) -> bytes:
    if name not in artifact.members:
        raise ArtifactError(f"the member {name!r} is missing")
    return artifact.members[name]

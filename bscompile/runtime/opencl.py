"""Code for OpenCL: run by pyopencl on the device that this machine offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.artifact import Artifact
from bscompile.artifact.launches import MEMBER as LAUNCHES
from bscompile.artifact.launches import Launch, Launches
from bscompile.artifact.program import MEMBER as PROGRAM
from bscompile.artifact.program import Program
from bscompile.devices import opencl as opencl_device
from bscompile.errors import ArtifactError, TargetError
from bscompile.runtime.executor import Executor

Array = npt.NDArray[Any]

KERNELS = "code/kernels.cl"

_Call = tuple[str, Any, Sequence[int], Sequence[int]]


class OpenCL(Executor):
    """A static program on an OpenCL device: memory, weights and kernels are made once."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._program = Program.from_json(_member(artifact, PROGRAM))
        launches = Launches.from_json(_member(artifact, LAUNCHES))
        launches.check(self._program)
        self._cl = opencl_device.load()
        self._limits = opencl_device.limits()
        self._check_fits(artifact.manifest.features, launches)
        with _clear_errors(self._cl, self._limits.name):
            self._context = self._cl.Context([opencl_device.find()])
            self._queue = self._command_queue()
            flags = self._cl.mem_flags.READ_WRITE
            self._memory = [
                self._cl.Buffer(self._context, flags, max(storage.bytes, 1))
                for storage in self._program.storages
            ]
            self._load_params(artifact)
            self._windows: list[Any] = []  # kernels do not keep their arguments alive
            self._calls = self._prepare(_member(artifact, KERNELS).decode(), launches)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Write the inputs, start every kernel in order, read the outputs."""
        with _clear_errors(self._cl, self._limits.name):
            self._write_inputs(inputs)
            for _, kernel, size, group in self._calls:
                self._cl.enqueue_nd_range_kernel(self._queue, kernel, size, group)
            outputs = []
            for index in self._program.outputs:
                buffer = self._program.buffers[index]
                array = np.empty(buffer.shape, buffer.dtype)
                if array.nbytes:
                    memory = self._memory[buffer.storage]
                    self._cl.enqueue_copy(
                        self._queue, array, memory, src_offset=buffer.offset, is_blocking=False
                    )
                outputs.append(array)
            self._queue.finish()
        return outputs

    def profile(self, inputs: Sequence[Array], repeats: int) -> list[tuple[str, float]]:
        """Time every launch by the device's own clock."""
        with _clear_errors(self._cl, self._limits.name):
            self._write_inputs(inputs)
            rounds = []
            for _ in range(repeats + 1):  # the first warms up
                events = [
                    self._cl.enqueue_nd_range_kernel(self._queue, kernel, size, group)
                    for _, kernel, size, group in self._calls
                ]
                self._queue.finish()
                rounds.append([1e-9 * (e.profile.end - e.profile.start) for e in events])
        times = np.median(rounds[1:], axis=0).tolist()
        return list(zip((name for name, *_ in self._calls), times, strict=True))

    def close(self) -> None:
        """Free the memory on the device."""
        self._queue.finish()
        self._calls, self._windows, self._memory = [], [], []

    # ------------------------------------------------------------ made once

    def _check_fits(self, features: Sequence[str], launches: Launches) -> None:
        here = self._limits
        used = [*features, *(buffer.dtype for buffer in self._program.buffers)]
        if dtype := opencl_device.lacking(used, here.extensions):
            extension = opencl_device.EXTENSIONS[dtype]
            raise ArtifactError(
                f"its code uses {dtype}, {here.name} has no {extension}",
                "build the model on this machine",
            )
        for several in launches.kernels.values():
            for launch in several:
                self._check_launch(launch)

    def _check_launch(self, launch: Launch) -> None:
        here = self._limits
        for what, wanted, limit in (
            ("work-items in a group", launch.threads, here.threads),
            *(
                (f"work-items along {axis}", length, most)
                for axis, length, most in zip("xyz", launch.block, here.sizes, strict=True)
            ),
            ("bytes of local memory", launch.shared_bytes, here.shared_bytes),
        ):
            if wanted > limit:
                raise ArtifactError(
                    f"kernel {launch.entry} wants {wanted} {what}, {here.name} has {limit}",
                    "build the model on this machine",
                )

    def _command_queue(self) -> Any:
        properties = self._cl.command_queue_properties.PROFILING_ENABLE
        return self._cl.CommandQueue(self._context, properties=properties)

    def _load_params(self, artifact: Artifact) -> None:
        storages, params = self._program.indices("param"), artifact.manifest.params
        if len(storages) != len(params):
            raise ArtifactError(
                f"its program takes {len(storages)} weights, the manifest lists {len(params)}"
            )
        for storage, param in zip(storages, params, strict=True):
            array = np.ascontiguousarray(artifact.weights[param.name], param.used)
            if array.nbytes != self._program.storages[storage].bytes:
                raise ArtifactError(f"weight {param.name!r} has another size than in the program")
            self._write(storage, array)

    def _prepare(self, source: str, launches: Launches) -> list[_Call]:
        """(name, kernel with its arguments, work-items, work-items of a group) of each launch."""
        library = opencl_device.program(self._context, source)
        calls: list[_Call] = []
        for step in self._program.steps:
            for launch in launches.kernels[step.kernel]:
                try:
                    kernel = self._cl.Kernel(library, launch.entry)
                except self._cl.Error as error:
                    raise ArtifactError(f"{KERNELS}: no kernel {launch.entry!r}") from error
                if kernel.num_args != len(launch.arguments):
                    raise ArtifactError(
                        f"{KERNELS}: {launch.entry} takes {kernel.num_args} arguments, "
                        f"{LAUNCHES} gives {len(launch.arguments)}"
                    )
                kernel.set_args(*(self._view(step.buffers[i]) for i in launch.arguments))
                size = [g * b for g, b in zip(launch.grid, launch.block, strict=True)]
                calls.append((step.kernel, kernel, size, launch.block))
        return calls

    def _view(self, index: int) -> Any:
        """The memory of a buffer; a window that begins later is a sub-buffer."""
        buffer = self._program.buffers[index]
        memory = self._memory[buffer.storage]
        if buffer.offset == 0:
            return memory
        window = memory.get_sub_region(buffer.offset, max(buffer.bytes, 1))
        self._windows.append(window)
        return window

    # ------------------------------------------------------------ for each call

    def _write_inputs(self, inputs: Sequence[Array]) -> None:
        for storage, array in zip(self._program.indices("input"), inputs, strict=True):
            native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
            self._write(storage, native)

    def _write(self, storage: int, array: Array) -> None:
        if array.nbytes:
            self._cl.enqueue_copy(self._queue, self._memory[storage], array)


EXECUTOR = OpenCL


def _member(artifact: Artifact, name: str) -> bytes:
    if name not in artifact.members:
        raise ArtifactError(f"the member {name!r} is missing")
    return artifact.members[name]


@contextmanager
def _clear_errors(cl: Any, device: str) -> Iterator[None]:
    """What a driver refuses, in one line."""
    try:
        yield
    except cl.Error as error:
        line = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise TargetError(f"{device} refused: {line.strip()}") from error

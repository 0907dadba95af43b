"""Static executables: run here where they are for this machine, else by an emulator.

The process is started once and serves every call: it reads the bytes of the inputs from its
standard input and writes those of the outputs to its standard output.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bscompile.artifact import Artifact
from bscompile.artifact.manifest import Manifest, TensorSpec
from bscompile.artifact.program import weights_image
from bscompile.devices import emulator
from bscompile.devices.cpu import check_machine
from bscompile.errors import ArtifactError, TargetError
from bscompile.runtime.executor import Executor

Array = npt.NDArray[Any]

EXECUTABLE = "code/model"


class StaticExecutable(Executor):
    """An executable of this project's own, with the whole program linked in."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        manifest = artifact.manifest
        self._inputs = [_fixed(spec) for spec in manifest.inputs]
        self._outputs = [_fixed(spec) for spec in manifest.outputs]
        before, environment = command_for(manifest)
        if before:
            self.stand_in = " ".join([*before, *environment.values()])
        if EXECUTABLE not in artifact.members:
            raise ArtifactError(f"the member {EXECUTABLE!r} is missing")
        folder = Path(tempfile.mkdtemp(prefix="bscompile-"))  # of mode 0700
        self._clean = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        program, weights = folder / "model", folder / "weights.bin"
        program.write_bytes(artifact.members[EXECUTABLE])
        program.chmod(0o700)
        write_weights(artifact, weights)
        self._command = [*before, str(program), str(weights), "--threads", str(threads)]
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Send the inputs, read the outputs."""
        try:
            return self._call(inputs)
        except (BrokenPipeError, EOFError) as error:
            raise ArtifactError(f"its program ended early{self._last_words()}") from error

    def close(self) -> None:
        """End the process and remove its files."""
        self._stop()
        self._clean()

    # ------------------------------------------------------------ the process

    def _call(self, inputs: Sequence[Array]) -> list[Array]:
        to_it, from_it = self._streams()
        for array in inputs:
            to_it.write(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).tobytes())
        to_it.flush()
        results = []
        for shape, dtype in self._outputs:
            size = math.prod(shape) * dtype.itemsize
            data = from_it.read(size)
            if len(data) < size:
                raise EOFError
            results.append(np.frombuffer(bytearray(data), dtype).reshape(shape))
        if not any(math.prod(shape) for shape, _ in self._inputs):
            self._stop()  # without inputs it answers once
        return results

    def _streams(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **self._environment},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _last_words(self) -> str:
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        said = process.communicate()[1].decode(errors="replace").strip().splitlines()
        status = f" with status {process.returncode}" if process.returncode > 0 else ""
        return f"{status}: {said[-1]}" if said else status

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._stop()


EXECUTOR = StaticExecutable


def command_for(manifest: Manifest) -> tuple[list[str], dict[str, str]]:
    """What comes before the program on the command line, and what it wants in its environment.

    Raises:
        ArtifactError: this CPU lacks a feature that the code needs.
        TargetError: it is for another processor, and no emulator of that is installed.
    """
    if manifest.machine == platform.machine():
        check_machine(manifest.machine, manifest.features)
        return [], {}
    name = emulator.emulator(manifest.machine)
    if not emulator.installed(manifest.machine):
        here = f"built for {manifest.machine} processors, this one is {platform.machine()}"
        known = f"apt-get install qemu-user to run it here by {name}, or " if name else ""
        raise TargetError(here, f"{known}copy what bscompile export --format native writes")
    return [name], emulator.environment(manifest.machine)


def write_weights(artifact: Artifact, path: Path) -> None:
    """Write the weights as the program reads them."""
    with path.open("wb") as file:
        for piece in weights_image(
            artifact.weights[param.name].astype(param.used, copy=False)
            for param in artifact.manifest.params
        ):
            file.write(piece)


def _fixed(spec: TensorSpec) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if any(isinstance(length, str) for length in spec.shape):
        raise ArtifactError(f"{spec} has an open length, and its program has none")
    return tuple(int(length) for length in spec.shape), np.dtype(spec.dtype)

"""One kernel alone as a static executable under an emulator, measured by its instructions.

The emulator counts what it executes: instructions, or packets of several on Hexagon. What one
call takes is the difference between a run of three calls and one of one. A count is no time: it
says nothing about caches, or how many instructions a core starts at once. Of several threads it
would not say which is the last, so it is taken of kernels for one thread only.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from bscompile.artifact.program import Buffer, Program, Step, Storage
from bscompile.devices import emulator
from bscompile.errors import TargetError
from bscompile.targets.base import Array, HardwareSpec
from bscompile.targets.lone_kernel import CountedKernel
from bscompile.targets.native.build import EXECUTABLE, build_static
from bscompile.targets.native.machines import MACHINES

#: What a count is told as.
COUNTS: Final = "instructions under an emulator, a nominal 1 per ns"
_RATE: Final = 1e9
_PLUGIN: Final = Path(__file__).parent / "c" / "count_instructions.c"

Compile = Callable[[Any, HardwareSpec], "EmulatedKernel"]


def compiler(code: Callable[[HardwareSpec], Any]) -> Compile:
    """The function that makes a kernel countable.

    Args:
        code: The tvm.target.Target of a machine's code.
    """
    return partial(EmulatedKernel, code=code)


def check(hardware: HardwareSpec) -> None:
    """Find out early whether kernels of a machine can be counted here.

    Raises:
        TargetError: they cannot.
    """
    if hardware.cores != 1:
        raise TargetError(
            f"instructions are counted for one thread, not for {hardware.cores}",
            "give --threads 1, here and to build",
        )
    if not emulator.installed(hardware.machine):
        raise TargetError(
            f"counting instructions of {hardware.machine} needs qemu", "apt-get install qemu-user"
        )
    MACHINES[hardware.machine].compiler()
    _host_compiler()


class EmulatedKernel(CountedKernel):
    """A kernel that is linked anew for the shapes that it is called with; the last one is y's.

    Args:
        prim_func: A tvm.tirx.PrimFunc.
        hardware: What it was made for.
        code: As of ``compiler``.
    """

    def __init__(
        self, prim_func: Any, hardware: HardwareSpec, code: Callable[[HardwareSpec], Any]
    ) -> None:
        self._kernel = prim_func.with_attr("global_symbol", "kernel")
        self._target, self._machine = code(hardware), hardware.machine

    def count(self, arrays: Sequence[Array], y: Array) -> tuple[Array, float]:
        """(y, instructions of one call at a nominal rate)."""
        import numpy as np

        program = program_of([("kernel", arrays, y)])
        members = build_static(
            program, {"kernel": self._kernel}, [], MACHINES[self._machine], self._target, 1
        )
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in (*arrays, y))
        with tempfile.TemporaryDirectory(prefix="bscompile-") as name:
            model, weights = Path(name) / "model", Path(name) / "weights.bin"
            model.write_bytes(members[EXECUTABLE])
            model.chmod(0o700)
            weights.touch()
            command = [model, weights, "--repeat"]
            once, first = self._run([*command, "1"], data)
            _, third = self._run([*command, "3"], data)
        result = np.frombuffer(bytearray(once), y.dtype).reshape(y.shape)
        return result, (third - first) / 2 / _RATE

    def _run(self, command: Sequence[object], data: bytes) -> tuple[bytes, int]:
        """(standard output, instructions executed) of a program."""
        done = subprocess.run(
            [emulator.emulator(self._machine), "-plugin", str(_plugin()), *map(str, command)],
            input=data,
            env={**os.environ, **emulator.environment(self._machine)},
            capture_output=True,
            check=False,
        )
        found = re.search(rb"instructions: (\d+)", done.stderr)
        if done.returncode or not found:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise TargetError(f"the kernel's program failed: {lines[-1] if lines else 'no reason'}")
        return done.stdout, int(found[1])


def program_of(calls: Sequence[tuple[str, Sequence[Array], Array]]) -> Program:
    """A program that calls kernels one after the other.

    Args:
        calls: (kernel, arguments before y, y as it is before) of each; all are inputs.

    Returns:
        Its outputs are the y of every call.
    """
    storages: list[Storage] = []
    buffers: list[Buffer] = []
    steps, outputs = [], []
    for name, arrays, y in calls:
        first = len(buffers)
        for array in (*arrays, y):
            buffers.append(Buffer(len(storages), 0, array.shape, array.dtype.name))
            storages.append(Storage(array.nbytes, "input"))
        steps.append(Step(name, tuple(range(first, len(buffers)))))
        outputs.append(len(buffers) - 1)
    return Program(tuple(storages), tuple(buffers), tuple(steps), tuple(outputs))


@cache
def _plugin() -> Path:
    """The emulator's plugin, compiled once in a process; it goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="bscompile-")
    _plugin.folder = folder  # type: ignore[attr-defined]  # removed when the process ends
    path = Path(folder.name) / "count.so"
    command = [*_host_compiler(), "-O2", "-shared", "-fPIC", str(_PLUGIN), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise TargetError(f"the emulator's plugin cannot be compiled: {lines[-1]}")
    return path


def _host_compiler() -> list[str]:
    try:
        return MACHINES[platform.machine()].compiler()
    except (KeyError, TargetError) as error:
        raise TargetError(
            "counting instructions needs a C compiler for this machine", "apt-get install gcc"
        ) from error

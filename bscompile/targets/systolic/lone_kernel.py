"""One kernel alone, measured by the cycles that the simulated array spends on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bscompile.devices import systolic as simulator
from bscompile.targets.base import Array, HardwareSpec
from bscompile.targets.cpu.build import compile_kernel as compile_for_host
from bscompile.targets.lone_kernel import CountedKernel
from bscompile.targets.systolic.hardware import SystolicSpec


def compile_kernel(prim_func: Any, hardware: HardwareSpec) -> Any:
    """Compile one kernel; what runs on the host alone is timed as target cpu does it."""
    assert isinstance(hardware, SystolicSpec)
    executable = compile_for_host(prim_func, hardware)
    drives_the_array = simulator.symbol(hardware.size, "run") in prim_func.script()
    return SystolicKernel(executable, hardware.size) if drives_the_array else executable


def check_kernel(hardware: HardwareSpec) -> None:
    """Build the simulator, unless it is there: that is for no candidate's time limit.

    Raises:
        TargetError: a tool is missing, or fails.
    """
    assert isinstance(hardware, SystolicSpec)
    simulator.open_driver(hardware.size)


class SystolicKernel(CountedKernel):
    """A kernel of the host that drives the array.

    Args:
        executable: A tvm.runtime.Executable that holds it as ``kernel``.
        size: Side of the array.

    Raises:
        TargetError: the driver cannot be built, loaded or started.
    """

    def __init__(self, executable: Any, size: int) -> None:
        simulator.open_driver(size)
        self._size, self._kernel = size, executable.jit()["kernel"]

    def count(self, arrays: Sequence[Array], y: Array) -> tuple[Array, float]:
        """(y, the array's cycles at its nominal clock)."""
        import tvm

        tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in (*arrays, y)]
        before = simulator.cycles(self._size)
        self._kernel(*tensors)
        cycles = simulator.cycles(self._size) - before
        return tensors[-1].numpy(), cycles / simulator.CLOCK_HZ

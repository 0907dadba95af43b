"""Code for a systolic array: a host library for TVM's virtual machine that calls its driver."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from bscompile.artifact import Artifact
from bscompile.devices import systolic as simulator
from bscompile.errors import ArtifactError, TargetError
from bscompile.runtime.executor import RefusedError
from bscompile.runtime.vm import VirtualMachine

Array = npt.NDArray[Any]

MEMBER = "code/systolic.json"


class SystolicArray(VirtualMachine):
    """The host's virtual machine, with the array's driver open before its code is loaded.

    Attributes:
        size: Side of the array.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self.size = _size(artifact)
        simulator.open_driver(self.size)
        self.stand_in = simulator.stand_in()
        super().__init__(artifact, threads)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call main.

        Raises:
            TargetError: the driver reported a fault.
        """
        try:
            return super().run(inputs)
        except RefusedError as error:
            if simulator.symbol(self.size, "") in str(error):
                raise TargetError(str(error), "run it again, or with another driver") from error
            raise

    @property
    def cycles(self) -> int:
        """Cycles that arrays of this size have worked in this process."""
        return simulator.cycles(self.size)

    def _mark(self) -> Any:
        return time.perf_counter(), self.cycles

    def _since(self, mark: Any) -> float:
        """What ran on the array counts by its cycles; how fast they are simulated says nothing."""
        started, before = mark
        spent = self.cycles - int(before)
        return spent / simulator.CLOCK_HZ if spent else time.perf_counter() - float(started)


EXECUTOR = SystolicArray


def _size(artifact: Artifact) -> int:
    try:
        size = json.loads(artifact.members[MEMBER])["array"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the member {MEMBER!r} does not name an array") from error
    if size not in simulator.SIZES:
        known = ", ".join(map(str, sorted(simulator.SIZES)))
        raise ArtifactError(f"made for an array of {size!r}, this runtime knows {known}")
    return int(size)

"""Code for a systolic array: a host library for TVM's virtual machine that calls its driver."""

from __future__ import annotations

import json
import time
from typing import Any

from bscompile import simulator
from bscompile.artifact import Artifact
from bscompile.errors import ArtifactError
from bscompile.runtime.vm import VirtualMachine

MEMBER = "code/systolic.json"


class SystolicArray(VirtualMachine):
    """The host's virtual machine, with the array's driver open before its code is loaded.

    Attributes:
        size: Side of the array.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self.size = _size(artifact)
        simulator.open_driver(self.size)
        super().__init__(artifact, threads)

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

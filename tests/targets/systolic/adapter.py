"""Kernels of the systolic target: int8 on the simulated array, float32 on the host beside it."""

from __future__ import annotations

from bscompile.devices import systolic as simulator
from tests.targets.narrow_running import load_kernel
from tests.targets.numeric_suite import Adapter


class SystolicAdapter(Adapter):
    """This host, and an array of the default size."""

    target = "systolic"
    dtypes = ("float32", "int8")

    def missing(self):
        tools = " and ".join(simulator.missing_packages())
        return f"the RTL is simulated with {tools}, not installed" if tools else ""

    def run(self, calls):
        hardware = self.context.hardware
        simulator.open_driver(hardware.size)
        return [
            load_kernel(call.kernel, hardware)(call.inputs[0], call.inputs[1:], call.shape)
            for call in calls
        ]


ADAPTERS = [SystolicAdapter()]

"""Runs one kernel of one target on this machine; the machines that the shared suite covers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bscompile.targets.base import HardwareSpec, problem_of


@dataclass(frozen=True)
class Machine:
    """A target variant whose kernels run here."""

    target: str
    variant: str

    def __str__(self) -> str:
        return f"{self.target}-{self.variant}"

    @cached_property
    def hardware(self) -> HardwareSpec:
        from bscompile.targets.cpu.hardware import hardware

        return hardware(self.variant, 2)

    def template(self, name: str) -> Any:
        from bscompile.targets.cpu.templates import TEMPLATES

        return {t.name: t for t in TEMPLATES}[name]

    def compile(self, func: Any) -> Any:
        import tvm

        from bscompile.targets.cpu.hardware import llvm_target

        name = func.attrs["global_symbol"]
        module = tvm.compile(tvm.IRModule({name: func}), target=llvm_target(self.hardware))
        return module.jit()[name]


def _machines() -> list[Machine]:
    from bscompile.targets.cpu.hardware import INSTRUCTION_SETS, host_features

    return [
        Machine("cpu", name)
        for name, isa in INSTRUCTION_SETS.items()
        if set(isa.features) <= host_features() and name != "sse2"
    ]


MACHINES = _machines()


def templates(form: str) -> list[str]:
    """Names of the templates that execute a form."""
    from bscompile.targets.cpu.templates import TEMPLATES

    return [t.name for t in TEMPLATES if t.name.startswith(form)]


def run_kernel(machine, name, op, x, tensors=(), symbolic=False, config=None):
    """y of one layer, computed by the named template's kernel."""
    import tvm

    m, n = len(x), op.shape[0]
    template = machine.template(name)
    problem = problem_of(op, None if symbolic else m, x.dtype)
    config = config or template.space(problem, machine.hardware)[0]
    kernel = template.build(problem, op.weight, config, machine.hardware)
    y = np.full((m, n), np.nan, np.float32)
    arrays = [x, *(array for _, array in kernel.operands), *tensors, y]
    held = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays]
    machine.compile(kernel.prim_func)(*held)
    return held[-1].numpy()

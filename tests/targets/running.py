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
        from bscompile.targets.tir_passes import TIR_PIPELINE

        name = func.attrs["global_symbol"]
        target, module = llvm_target(self.hardware), tvm.IRModule({name: func})
        return tvm.compile(module, target=target, tir_pipeline=TIR_PIPELINE).jit()[name]


def _machines() -> list[Machine]:
    from bscompile.devices.cpu import cpu_features
    from bscompile.targets.cpu.hardware import INSTRUCTION_SETS

    return [
        Machine("cpu", name)
        for name, isa in INSTRUCTION_SETS.items()
        if set(isa.features) <= cpu_features() and name != "sse2"
    ]


MACHINES = _machines()


def templates(form: str) -> list[str]:
    """Names of the templates that execute a form."""
    from bscompile.targets.cpu.templates import TEMPLATES

    return [t.name for t in TEMPLATES if t.name.startswith(form)]


def build_kernel(machine, name, op, m, config=None):
    """The named template's kernel for one layer, as a function (x, tensors) -> y.

    ``m`` is the number of rows, or None for a kernel that takes any.
    """
    import tvm
    import tvm_ffi

    template = machine.template(name)
    problem = problem_of(op, m, np.dtype(np.float32))
    config = config or template.space(problem, machine.hardware)[0]
    kernel = template.build(problem, op.weight, config, machine.hardware)
    compiled = machine.compile(kernel.prim_func)
    operands = [tvm.runtime.tensor(np.ascontiguousarray(array)) for _, array in kernel.operands]

    def run(x, tensors=()):
        # Views that begin four bytes past an aligned address: no kernel may assume more.
        x, *tensors = [unaligned(a) for a in (x, *tensors)]
        y = unaligned(np.full((len(x), op.shape[0]), np.nan, np.float32))
        held = [tvm_ffi.from_dlpack(a) for a in (x, *tensors, y)]
        compiled(held[0], *operands, *held[1:])
        return y

    return run


def unaligned(array):
    """A float32 copy whose data begins at an address that only floats may begin at."""
    room = np.empty(array.size + 32, np.float32)
    start = (4 - room.ctypes.data) % 64 // 4
    view = room[start : start + array.size].reshape(array.shape)
    view[...] = array
    assert array.size == 0 or view.ctypes.data % 64 == 4
    return view

"""Compiled kernels by what they say: layers that differ in their pattern alone share their code."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from bscompile.targets.base import HardwareSpec, Target

_MOST = 512  # kernels; a few tens of kilobytes each


class CompiledKernels:
    """Compiles each distinct kernel once; the oldest ones are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, prim_func: Any, target: Target, hardware: HardwareSpec) -> Any:
        """What ``target.compile_kernel`` makes of a kernel.

        Args:
            prim_func: tvm.tirx.PrimFunc; two that are equal in structure are one kernel.
            target: Compiles it.
            hardware: The machine that it is for.
        """
        from tvm_ffi import StructuralKey

        key = (target.name, repr(hardware), StructuralKey(prim_func))
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        assert target.compile_kernel is not None
        made = target.compile_kernel(prim_func, hardware)
        self._known[key] = made
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return made

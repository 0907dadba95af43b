"""Schedules for what is no kernel of ours: tried in order, the first that takes a function wins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tvm

from bscompile.targets.cpu.schedules import elementwise, fallback, reductions, windows

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

#: (function, hardware) -> the scheduled function, or None for «not mine».
Rule = Callable[[Any, "HardwareSpec"], Any]

RULES: tuple[Rule, ...] = (
    windows.apply,
    elementwise.apply,
    reductions.apply,
    fallback.apply,  # takes everything, so it comes last
)


def Schedule(hardware: HardwareSpec) -> Any:  # noqa: N802  # a pass, named like TVM's
    """The pass that schedules every loop nest of a module that has no schedule yet."""

    def run(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        for name, func in list(module.functions_items()):
            if isinstance(func, tvm.tirx.PrimFunc) and not func.attrs.get("tirx.is_scheduled"):
                module[name] = schedule(func, hardware)
        return module

    return tvm.transform.module_pass(run, opt_level=0, name="bscompile.Schedule")


def schedule(func: Any, hardware: HardwareSpec) -> Any:
    """The function as the first rule that takes it leaves it."""
    for rule in RULES:
        scheduled = rule(func, hardware)
        if scheduled is not None:
            return scheduled.with_attr("tirx.is_scheduled", True)
    return func

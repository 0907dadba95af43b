"""The targets: one folder each, one line here each, imported only when asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bscompile.errors import TargetError, did_you_mean

if TYPE_CHECKING:
    from bscompile.targets.base import Target, TargetContext

#: Name -> module that exports TARGET. A new target is one line here and one folder.
TARGETS = {
    "cpu": "bscompile.targets.cpu",
    "cuda": "bscompile.targets.cuda",
    "hexagon": "bscompile.targets.hexagon",
    "metal": "bscompile.targets.metal",
    "opencl": "bscompile.targets.opencl",
    "rocm": "bscompile.targets.rocm",
    "systolic": "bscompile.targets.systolic",
    "webgpu": "bscompile.targets.webgpu",
}


def get_target(name: str) -> Target:
    """The manifest of a target.

    Raises:
        TargetError: no target has that name.
    """
    if name not in TARGETS:
        raise TargetError(f"unknown target {name!r}", hint=did_you_mean(name, TARGETS))
    target: Target = importlib.import_module(TARGETS[name]).TARGET
    return target


def variant_of(target: Target, variant: str) -> Target:
    """The manifest that serves a variant."""
    return target.elsewhere.get(variant, target)


def resolve(spec: str, threads: int | None = None, typical_rows: int = 128) -> TargetContext:
    """Turn what the user typed, such as ``cpu`` or ``cpu:avx2``, into a context.

    Args:
        spec: ``name`` or ``name:variant``, or ``name:variant+variant`` where the target can.
        threads: Worker threads to compile for; None takes what the machine has.
        typical_rows: Rows of x to plan for where the model leaves them symbolic.

    Raises:
        TargetError: unknown name or variant, or the machine lacks what it needs.
    """
    from bscompile.targets.base import TargetContext

    name, _, variant = spec.partition(":")
    target = get_target(name)
    for one in variant.split("+") if target.joins_variants else [variant]:
        if one not in target.variants and variant:
            raise TargetError(
                f"unknown variant {one!r} of target {name}",
                did_you_mean(one, filter(None, target.variants)),
            )
    target = variant_of(target, variant)
    hardware = target.hardware(variant, threads)
    return TargetContext(target, variant, hardware, typical_rows)

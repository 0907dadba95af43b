"""What the cost models know: the array's cycles, and the host beside it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bscompile.devices.systolic import DEPTH, SIZES
from bscompile.errors import TargetError, did_you_mean
from bscompile.targets.base import HardwareSpec
from bscompile.targets.cpu.hardware import hardware as host_hardware

#: What users may type after ``systolic:``; nothing is the first of SIZES.
VARIANTS = ("", *map(str, sorted(SIZES)))


@dataclass(frozen=True)
class SystolicSpec(HardwareSpec):
    """A host and the array beside it; what HardwareSpec says is said of the host.

    Attributes:
        size: Sides of the array.
        depth: Rows of x that one run takes.
    """

    size: int = SIZES[0]
    depth: int = DEPTH


def hardware(variant: str = "", threads: int | None = None) -> SystolicSpec:
    """The machine to compile for: this host with an array of the variant's size.

    Args:
        variant: The array's side; empty takes the default.
        threads: Worker threads of the host.

    Raises:
        TargetError: there is no array of that size.
    """
    if variant not in VARIANTS:
        raise TargetError(
            f"unknown variant {variant!r} of target systolic", did_you_mean(variant, VARIANTS[1:])
        )
    size = int(variant or SIZES[0])
    host = host_hardware("", threads)
    values = {field.name: getattr(host, field.name) for field in fields(host)}
    values["name"] = f"systolic {size}x{size} at a nominal 1 GHz, host {host.name}"
    return SystolicSpec(**values, size=size)

"""The artifact's code: the host's shared library, and which array it drives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bscompile.targets.cpu.build import build as build_for_host
from bscompile.targets.systolic.hardware import SystolicSpec

if TYPE_CHECKING:
    from bscompile.targets.base import TargetContext
    from bscompile.targets.lowering import Lowered

#: The artifact member that names the array.
MEMBER = "code/systolic.json"


def build(lowered: Lowered, context: TargetContext) -> dict[str, bytes]:
    """Compile for the host; the driver's functions stay open until a model is loaded.

    Args:
        lowered: The model as one Relax module; array kernels call the driver.
        context: The host and the array.

    Returns:
        The host's library and ``code/systolic.json``: ``{"array": 16}``.

    Raises:
        TargetError: no C++ compiler is installed, or it fails.
    """
    assert isinstance(context.hardware, SystolicSpec)
    device = json.dumps({"array": context.hardware.size})
    return {**build_for_host(lowered, context), MEMBER: device.encode()}

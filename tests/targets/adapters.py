"""Who passes the numeric suite: one adapter for each target that kernels can be run on here."""

from __future__ import annotations

import importlib

#: Module -> the adapters that it holds as ADAPTERS.
MODULES = (
    "tests.targets.cpu_adapter",
    "tests.targets.cuda.adapter",
    "tests.targets.opencl.adapter",
    "tests.targets.static_adapter",
    "tests.targets.systolic.adapter",
    "tests.targets.webgpu.adapter",
)


def adapters():
    """All adapters."""
    return [one for name in MODULES for one in importlib.import_module(name).ADAPTERS]

"""A hardware-aware compiler for neural networks with block-sparse and factorized weights.

    import bscompile

    compiled = bscompile.build("model.onnx", target="cpu")
    compiled.save("model.bsc")
    model = bscompile.load("model.bsc")
    y = model(x)

Names are imported when they are first used: loading a model imports no compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bscompile.api import build as build
    from bscompile.api import inspect as inspect
    from bscompile.api import tune as tune
    from bscompile.benchmark import bench as bench
    from bscompile.runtime import Model as Model
    from bscompile.runtime import load as load
    from bscompile.verification import verify as verify

_HOME = {
    "build": "bscompile.api",
    "inspect": "bscompile.api",
    "tune": "bscompile.api",
    "bench": "bscompile.benchmark",
    "verify": "bscompile.verification",
    "load": "bscompile.runtime",
    "Model": "bscompile.runtime",
}

__all__ = ["Model", "bench", "build", "inspect", "load", "tune", "verify"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bscompile")
    if name not in _HOME:
        raise AttributeError(f"module 'bscompile' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

"""What lowering hands to a target's build: one Relax module and the arrays to call it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from bscompile.artifact.manifest import TensorSpec

__all__ = ["Lowered", "TensorSpec"]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A model as one Relax module.

    Attributes:
        module: tvm.IRModule with the function ``main(*inputs, *params)``.
        params: (name, array) in call order; weights live here, never inside the module.
        inputs: The model's inputs in call order.
        outputs: The model's outputs; ``main`` returns a tuple when there are several.
    """

    module: Any
    params: tuple[tuple[str, npt.NDArray[Any]], ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

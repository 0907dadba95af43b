"""What every pass is: an in-place pass of onnx_ir that says what it did and what it refused."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Note:
    """One thing that a pass did, or declined to do, in words for the user.

    Attributes:
        pass_name: The pass's class name.
        layer: The layer or node concerned, as named in the user's model.
        text: What was done, or why not.
        applied: Whether it was done.
    """

    pass_name: str
    layer: str
    text: str
    applied: bool = True


class GraphPass(ir.passes.InPlacePass):
    """Base of all passes: write ``rewrite``, call ``applied_to`` and ``refused_for``.

    A pass object runs once; ``applied`` and ``refused`` are read after the run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[Note] = []
        self.refused: list[Note] = []

    @abstractmethod
    def rewrite(self, model: ir.Model) -> bool:
        """Change the model in place; return whether anything changed."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run ``rewrite`` under onnx_ir's pass protocol."""
        return ir.passes.PassResult(model, modified=self.rewrite(model))

    def applied_to(self, layer: str, text: str) -> None:
        """Record a change."""
        self.applied.append(Note(type(self).__name__, layer, text))

    def refused_for(self, layer: str, text: str) -> None:
        """Record a refusal and its reason."""
        self.refused.append(Note(type(self).__name__, layer, text, applied=False))

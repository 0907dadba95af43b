"""Lowering: an ONNX model, dialect ops included, becomes one Relax module and its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bscompile.targets.lowering.lowered import Lowered, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from bscompile.targets.base import TargetContext

__all__ = ["Lowered", "TensorSpec", "lower"]


def lower(model: ir.Model, context: TargetContext, *, use_up: bool = False) -> Lowered:
    """Turn a model into a Relax module for one target.

    Args:
        model: With shapes inferred and dialect ops in place; it is not changed.
        context: The target and machine to build kernels for.
        use_up: Take each weight out of ``model`` once it is packed, so that the memory never
            holds all of them twice; the model is worth nothing afterwards.

    Raises:
        ModelError: an operator cannot be compiled; said before any work where possible.
    """
    import onnx_ir.passes.common as onnx_passes

    from bscompile.dialect import DOMAIN
    from bscompile.targets.lowering.importer import Importer
    from bscompile.targets.lowering.support import check_supported

    working = model if use_up else model.clone()
    onnx_passes.InlinePass(lambda function: function.domain != DOMAIN)(working)
    check_supported(working, folded=True)
    return Importer(working, context, release_weights=use_up).run()

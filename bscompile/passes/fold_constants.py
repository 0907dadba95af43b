"""Everything that does not depend on the inputs is computed now; dead code goes.

    Mul(S, A), Transpose(W), Reshape, Gather, Concat, kron chains, DequantizeLinear(int8 weight)
    -> one initializer;  Identity, Dropout -> nothing;  Constant -> initializer

The evaluator is onnxscript's. What is folded is decided here: onnxscript's limits (8,192
elements in) would leave the weights of real models in pieces, and no limit would let a few bytes
such as ConstantOfShape([10⁶, 10⁶]) ask for terabytes.

Refuses: results of unknown size, operators that only blow constants up (Expand, Tile, ...) over
a mebibyte, anything over the budget.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import FOLDED_FROM_KEY
from onnxscript.optimizer._constant_folding import FoldConstantsPass

from bscompile.passes.base import GraphPass
from bscompile.passes.graph import bits_of, is_op, nbytes_of

_LARGEST_RESULT = 2**28  # bytes
_SMALL = 2**20
_LEAST_BUDGET = 2**30
#: Their results hold no more than their inputs do, only in more bytes.
_BLOW_UP = ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "OneHot", "EyeLike")
#: The evaluator computes these with Python loops.
_SLOW = ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Loop", "Scan", "If", "Upsample")


class FoldConstants(GraphPass):
    """Constant sub-graphs -> initializers."""

    def rewrite(self, model: ir.Model) -> bool:
        """Fold until nothing changes, then lift what constants are left."""
        weights = sum(nbytes_of(v.const_value) for v in model.graph.initializers.values())
        self._budget = max(_LEAST_BUDGET, 4 * weights)
        before = len(model.graph)
        outputs = [value.name for value in model.graph.outputs]
        fold = FoldConstantsPass(
            shape_inference=True,
            input_size_limit=_LARGEST_RESULT,
            output_size_limit=_LARGEST_RESULT,
            should_fold=self._should_fold,
        )
        with _quiet("onnxscript.optimizer._constant_folding"):
            modified = fold(model).modified
        modified |= common.IdentityEliminationPass()(model).modified
        _keep_outputs_apart(model.graph, outputs)
        modified |= common.RemoveUnusedNodesPass()(model).modified
        lift = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
        modified |= lift(model).modified
        for value in model.graph.initializers.values():
            value.metadata_props.pop(FOLDED_FROM_KEY, None)
        if len(model.graph) < before:
            self.applied_to("graph", f"{before - len(model.graph)} of {before} nodes folded away")
        return bool(modified)

    def _should_fold(self, node: ir.Node) -> bool:
        """Whether the evaluator may compute a node; all its inputs are constants."""
        if is_op(node, *_SLOW):
            return False
        size = _result_bytes(node)
        read = sum(nbytes_of(v.const_value) for v in node.inputs if v is not None)
        if size is None:  # shape inference could not tell; small inputs give small results
            return read <= _SMALL and not is_op(node, *_BLOW_UP)
        if is_op(node, *_BLOW_UP) and size > max(_SMALL, 2 * read):
            return False
        if size > _LARGEST_RESULT or size > self._budget:
            self.refused_for(node.name or node.op_type, f"constant of {size} bytes kept unfolded")
            return False
        self._budget -= size
        return True


def _keep_outputs_apart(graph: ir.Graph, names: list[str | None]) -> None:
    """Give each output a value and its old name again.

    Folding and eliminating leave one value, and one name, for two outputs that are equal.
    """
    taken: set[ir.Value] = set()
    for position, (value, name) in enumerate(zip(graph.outputs, names, strict=True)):
        fresh = value not in taken
        taken.add(value)
        if fresh and value.name == name:
            continue
        if fresh and value.producer() is not None:
            value.name = name
            continue
        node = ir.node("Identity", [value])
        graph.append(node)
        (copy,) = node.outputs
        copy.name, copy.shape, copy.type = name, value.shape, value.type
        graph.outputs[position] = copy


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without a logger's warnings: a node that the evaluator cannot compute just stays."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _result_bytes(node: ir.Node) -> int | None:
    """Bytes of all results, None if a shape is unknown."""
    total = 0
    for value in node.outputs:
        if value.shape is None or not value.shape.is_static() or value.dtype is None:
            return None
        total += math.prod(value.shape.numpy()) * max(bits_of(value.dtype), 8) // 8
    return total

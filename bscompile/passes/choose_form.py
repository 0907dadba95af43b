"""Each dialect node gets the weight form that should run fastest on the target, and its precision.

The planner is handed in, because passes know no target: it says for a layer, its rows and its
dtype which form of W to run and what that costs. Equal problems are planned once.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from bscompile.dialect import (
    CHOICE_KEY,
    FOUND_KEY,
    LinearOp,
    Weight,
    is_dialect,
    make_node,
    read_node,
    tensor_inputs,
)
from bscompile.dialect.precision import PRECISIONS, Precision, in_precision, largest
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.passes.base import GraphPass
from bscompile.passes.choice import Choice, Planner, choice_text, stored_weight
from bscompile.passes.graph import replace

_LARGEST_FLOAT16 = 65504.0


class ChooseForm(GraphPass):
    """Dialect node -> the same layer in the form that the planner chose."""

    def __init__(self, plan: Planner, precision: str = "float32") -> None:
        super().__init__()
        self._plan, self._precision = plan, PRECISIONS[precision]

    def rewrite(self, model: ir.Model) -> bool:
        """Plan each distinct problem once and rewrite its nodes."""
        plans: dict[tuple[object, ...], Choice] = {}
        for node in list(model.graph):
            if not is_dialect(node):
                continue
            op, (rows, step) = read_node(node), rows_of(node)
            precision = self._precision_for(op)
            key = (_digest(op.weight), rows, step, op.epilogue, op.conv)
            if key not in plans:
                plans[key] = self._plan(op, rows, precision, step)
            choice = plans[key]
            self._apply(model.graph, node, op, choice, precision)
            self.applied_to(op.name, choice.reason)
        return bool(self.applied)

    def _precision_for(self, op: LinearOp) -> Precision:
        """What the layer is to be multiplied in.

        A layer that comes quantised stays so. A convolution's windows share their pixels, so
        that quantising them row by row would cost more than it gains: float32 instead.
        """
        if op.quantization is not None:
            return PRECISIONS["int8"]
        if self._precision == np.int8 and op.conv is not None:
            self.refused_for(op.name, "a convolution stays in float32")
            return PRECISIONS["float32"]
        if self._precision == np.float16 and largest(op.weight) > _LARGEST_FLOAT16:
            self.refused_for(op.name, f"weights up to {largest(op.weight):.3g} overflow float16")
            return PRECISIONS["float32"]
        return self._precision

    def _apply(
        self,
        graph: ir.Graph,
        node: ir.Node,
        op: LinearOp,
        choice: Choice,
        precision: Precision,
    ) -> None:
        chosen = in_precision(op.with_weight(stored_weight(op, choice)), precision)
        if chosen.weight is not op.weight:
            found = node.metadata_props.get(FOUND_KEY)
            x = node.inputs[0]
            assert x is not None
            new = make_node(chosen, graph, x, tensor_inputs(node), node.outputs[0])
            if found is not None:
                new.metadata_props[FOUND_KEY] = found
            replace(graph, [node], [new])
            node = new
        node.metadata_props[CHOICE_KEY] = choice_text(choice)


def rows_of(node: ir.Node) -> tuple[int | None, int]:
    """Rows that the kernel sees, x's leading dimensions or n oh ow of a convolution.

    Returns:
        (rows, step): the rows, or None and what they are a multiple of where one is symbolic.
    """
    value = node.outputs[0] if node.op_type.endswith("Conv") else node.inputs[0]
    if value is None or value.shape is None:
        return None, 1
    dims = list(value.shape)
    leading = [dims[0], *dims[2:]] if node.op_type.endswith("Conv") else dims[:-1]
    sizes = [d for d in leading if isinstance(d, int)]
    step = math.prod(sizes)
    return (step, 1) if len(sizes) == len(leading) else (None, max(1, step))


def _arrays(weight: Weight) -> tuple[np.ndarray[Any, Any], ...]:
    if isinstance(weight, BlockSparseMatrix):
        return weight.values, weight.indices, weight.indptr
    return (weight.a, weight.b) if isinstance(weight, KroneckerSum) else (weight,)


def _digest(weight: Weight) -> str:
    """Equal for weights that are equal in every number, form and shape."""
    digest = hashlib.blake2b(f"{type(weight).__name__} {weight.shape}".encode())
    for array in _arrays(weight):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

"""A layer whose result is only read in parts becomes a layer for each part.

    y = x Wᵀ + b, q = y[..., Q], k = y[..., K], ..   ->   q = x W[Q]ᵀ + b[Q], k = x W[K]ᵀ + b[K], ..

Models write queries, keys and values as one layer and cut its result by Split, Slice or Gather,
behind reshapes and transposes (output_parts.py). As layers of their own they need no copy, and
dead features, orders of features and attention are found in them as in models that never joined
them. Rows that no part reads go.

Leaves alone: parts that overlap, or that no product of two activations reads: elsewhere code
generation cuts them out where they are used, at no cost. Refuses: a bias or residual that is
computed; factors that the parts would cut inside a block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import (
    FOUND_KEY,
    LinearOp,
    Weight,
    dense_weight,
    is_dialect,
    is_float_layer,
    make_node,
    read_node,
    tensor_inputs,
)
from bscompile.formats import KroneckerSum
from bscompile.formats.detect import BlockPattern
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import add_initializer, constant, forget, is_op
from bscompile.passes.output_parts import find_parts
from bscompile.passes.recognise_factorized import found_kronecker
from bscompile.passes.recognise_linear import best_form
from bscompile.passes.weight_slices import take_rows

Index = npt.NDArray[np.int64]


class SplitOutputs(GraphPass):
    """One layer of several results -> several layers."""

    def rewrite(self, model: ir.Model) -> bool:
        """Split every such layer of the main graph."""
        for node in list(model.graph):
            if is_float_layer(node) and node.op_type.endswith("MatMul"):
                self._try(model.graph, node)
        return bool(self.applied)

    def _try(self, graph: ir.Graph, node: ir.Node) -> None:
        found = find_parts(node.outputs[0])
        if found is None or not any(_meets_a_product(part.value) for part in found.parts):
            return
        op, biases = read_node(node), [constant(bias) for bias in tensor_inputs(node)]
        forms = [_rows(op.weight, part.rows) for part in found.parts]
        reason = None
        if "residual" in op.epilogue or any(bias is None for bias in biases):
            reason = "what is added to its result is computed"
        elif any(form is None for form in forms):
            reason = "its factors would be cut inside a block"
        if reason:
            self.refused_for(op.name, f"read in {len(found.parts)} parts, but {reason}")
            return
        for number, (part, form) in enumerate(zip(found.parts, forms, strict=True)):
            assert form is not None
            name = f"{op.name}.{number}"
            tensors = [
                add_initializer(graph, f"{name}.bias", bias[part.rows])
                for bias in biases
                if bias is not None
            ]
            made = _layer(graph, node, LinearOp(name, form[0], op.epilogue), tensors)
            made.metadata_props[FOUND_KEY] = form[1].to_json()
            graph.insert_before(node, made)
            value = found.lead(graph, made.outputs[0], part)
            if part.value.is_graph_output():  # its name is part of the contract
                value.name, part.value.name = part.value.name, f"{part.value.name}.part"
            ir.convenience.replace_all_uses_with(part.value, value, replace_graph_outputs=True)
        unused = [value for value in node.inputs[1:] if value is not None]
        graph.remove([node, *found.nodes], safe=True)
        forget(graph, unused)
        sizes = " + ".join(str(len(part.rows)) for part in found.parts)
        self.applied_to(op.name, f"read in parts: {sizes} outputs, a layer for each")


def _layer(graph: ir.Graph, whole: ir.Node, op: LinearOp, tensors: list[ir.Value]) -> ir.Node:
    """A layer that makes some of the outputs of another one."""
    x, y = whole.inputs[0], whole.outputs[0]
    assert x is not None
    assert y.shape is not None
    made = make_node(op, graph, x, tuple(tensors))
    result = made.outputs[0]
    result.type, result.shape = y.type, ir.Shape([*y.shape[:-1], op.shape[0]])
    return made


def _rows(weight: Weight, rows: Index) -> tuple[Weight, BlockPattern] | None:
    """Some rows of a weight and what they are; None where factors cannot express them."""
    if isinstance(weight, KroneckerSum):
        taken = take_rows(weight, rows)
        return (taken, found_kronecker(taken)) if isinstance(taken, KroneckerSum) else None
    return best_form(dense_weight(weight)[rows])


def _meets_a_product(value: ir.Value) -> bool:
    """Whether a product of two activations reads it, before any other layer does."""
    waiting, met = [value], {value}
    while waiting:
        for use in waiting.pop().uses():
            node = use.node
            if is_op(node, "MatMul", "Gemm", "Einsum"):
                return True  # products with constants are layers by now
            if is_dialect(node):
                continue
            waiting += [y for y in node.outputs if y not in met]
            met |= set(node.outputs)
    return False

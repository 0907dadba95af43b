"""A layer between two reshapes takes the tensor as it was.

    Reshape [.., in] -> [m, in], layer, Reshape [m, out] -> [.., out]   ->   layer on [.., in]

Exporters write it where a framework multiplies matrices only. Between the layer and what follows
it, the second reshape would keep an activation or an addition out of the layer.
"""

from __future__ import annotations

import onnx_ir as ir

from bscompile.dialect import DOMAIN, VERSION, is_dialect
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import is_op, layer_name, only_reader, replace


class AbsorbReshape(GraphPass):
    """Reshape, dialect MatMul, Reshape -> the MatMul alone, where the leading axes come back."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite every such layer of the main graph."""
        for node in list(model.graph):
            if is_dialect(node) and node.op_type.endswith("MatMul"):
                self._absorb(model.graph, node)
        return bool(self.applied)

    def _absorb(self, graph: ir.Graph, node: ir.Node) -> None:
        flat = node.inputs[0]
        before = None if flat is None else flat.producer()
        after = only_reader(node.outputs[0])
        if before is None or not is_op(before, "Reshape") or not is_op(after, "Reshape"):
            return
        assert after is not None
        x, y = before.inputs[0], after.outputs[0]
        if x is None or "residual" in node.attributes["epilogue"].as_string():
            return
        if after.inputs[0] is not node.outputs[0] or not _only_last_axis_differs(node, x, y):
            return
        new = ir.Node(
            DOMAIN,
            node.op_type,
            [x, *node.inputs[1:]],
            list(node.attributes.values()),
            name=node.name,
            version=VERSION,
            metadata_props=dict(node.metadata_props),
        )
        made, old = new.outputs[0], node.outputs[0]
        made.name, made.type, made.shape = y.name, old.type, y.shape
        replace(graph, [node, after], [new])
        if not before.outputs[0].uses() and not before.outputs[0].is_graph_output():
            graph.remove(before, safe=True)
        self.applied_to(layer_name(new), "reshapes around it dropped")


def _only_last_axis_differs(node: ir.Node, x: ir.Value, y: ir.Value) -> bool:
    """Whether x is [.., in] and y [.., out] with the same leading axes."""
    if x.shape is None or y.shape is None or len(x.shape) != len(y.shape) or len(x.shape) < 2:
        return False
    out, inner = node.attributes["shape"].as_ints()
    if x.shape[-1] != inner or y.shape[-1] != out:
        return False
    pairs = zip(list(x.shape)[:-1], list(y.shape)[:-1], strict=True)
    return all(a == b and (isinstance(a, int) or a.value is not None) for a, b in pairs)

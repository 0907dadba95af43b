"""An axis of length one that is dropped and comes back need not go.

    Squeeze, f, Unsqueeze of the same axes  ->  f        f works on each value alone, or is nothing

Convolutions of one axis become ones of two with such pairs between them; without, what follows one
is part of its kernel, and the next reads its result in the layout in which it was computed.

Refuses: other readers between, axes that are computed.
"""

from __future__ import annotations

import onnx_ir as ir

from bscompile.passes.base import GraphPass
from bscompile.passes.graph import constant, is_op, layer_name, only_reader, replace

_ALONE = (
    "Abs", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Neg",
    "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Swish", "Tanh",
)  # fmt: skip


class DropSqueezes(GraphPass):
    """Squeeze, elementwise operators of one input, Unsqueeze -> those operators alone."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite every such chain of the main graph."""
        for node in list(model.graph):
            if is_op(node, "Squeeze") and node.graph is model.graph:
                self._drop(model.graph, node)
        return bool(self.applied)

    def _drop(self, graph: ir.Graph, squeeze: ir.Node) -> None:
        axes = _axes(squeeze, 0)
        chain: list[ir.Node] = []
        reader = only_reader(squeeze.outputs[0])
        while reader is not None and is_op(reader, *_ALONE) and len(reader.inputs) == 1:
            chain.append(reader)
            reader = only_reader(reader.outputs[0])
        if axes is None or reader is None or not is_op(reader, "Unsqueeze"):
            return
        back = reader.outputs[0]
        if _axes(reader, len(axes)) != axes or back.is_graph_output():
            return
        (x, *_) = squeeze.inputs
        assert x is not None  # the checker demands it
        made = []
        for old in chain:
            node = ir.Node("", old.op_type, [x], list(old.attributes.values()), name=old.name)
            node.metadata_props.update(old.metadata_props)
            (y,), (before,) = node.outputs, old.outputs
            y.name, y.type, y.shape = before.name, before.type, x.shape
            made.append(node)
            x = y
        if made:
            replace(graph, [squeeze, *chain, reader], made)
        else:
            ir.convenience.replace_all_uses_with(back, x)
            graph.remove([reader, squeeze], safe=True)
        self.applied_to(layer_name(squeeze), "axes of length one are kept")


def _axes(node: ir.Node, more: int) -> list[int] | None:
    """The constant axes of a Squeeze or Unsqueeze, counted from the front of the larger tensor."""
    value = node.inputs[0]
    known = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if known is None or value is None or value.shape is None:
        return None
    rank = len(value.shape) + more
    return sorted(int(axis) % rank for axis in known.reshape(-1))

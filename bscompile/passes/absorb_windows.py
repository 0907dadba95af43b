"""A layer over the listed windows of an image is a convolution.

    Conv with a one-hot kernel, a group a channel: [n, c, h, w] -> [n, c kh kw, oh, ow]
      Transpose to channels last, MatMul op, Transpose to channels first       ->   Conv op

Exporters of factorized convolutions write that: ONNX has no operator that lists windows. The
kernels of convolutions read the image itself instead of a copy kh kw times as large.

Refuses nothing aloud: what is not exactly that is a convolution and a matmul, and stays so.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bscompile.dialect import FOUND_KEY, ConvGeometry, LinearOp, is_dialect, make_node, read_node
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import constant, is_op, layer_name, only_reader, replace
from bscompile.passes.recognise_linear import conv_geometry

_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # where a Transpose puts the channels


class AbsorbWindows(GraphPass):
    """One-hot Conv, Transpose, dialect MatMul, Transpose -> dialect Conv."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite every such layer of the main graph."""
        for node in list(model.graph):
            if is_dialect(node) and node.op_type.endswith("MatMul"):
                self._absorb(model.graph, node)
        return bool(self.applied)

    def _absorb(self, graph: ir.Graph, node: ir.Node) -> None:
        rows = node.inputs[0]
        before = None if rows is None else rows.producer()
        after = only_reader(node.outputs[0])
        if before is None or not _turns(before, _LAST) or not _turns(after, _FIRST):
            return
        listed = before.inputs[0]
        lister = None if listed is None else listed.producer()
        geometry = None if lister is None else listing_geometry(lister)
        op = read_node(node)
        if lister is None or geometry is None or op.epilogue:
            return
        image = lister.inputs[0]
        assert image is not None
        assert after is not None
        new = LinearOp(op.name, op.weight, conv=geometry)
        made = make_node(new, graph, image, output=after.outputs[0])
        made.metadata_props[FOUND_KEY] = node.metadata_props[FOUND_KEY]
        replace(graph, [node, after], [made])
        for unread in (before, lister):
            if not unread.outputs[0].uses() and not unread.outputs[0].is_graph_output():
                graph.remove(unread, safe=True)
        self.applied_to(layer_name(made), "a product over the windows of an image is a convolution")


def listing_geometry(node: ir.Node) -> ConvGeometry | None:
    """The windows that a Conv lists, channels slowest, each place unchanged; else None."""
    if not is_op(node, "Conv") or any(value is not None for value in node.inputs[2:]):
        return None
    image, kernel = node.inputs[0], constant(node.inputs[1])
    if image is None or image.shape is None or kernel is None or kernel.ndim != 4:
        return None
    places = kernel.shape[2] * kernel.shape[3]
    channels = node.attributes.get_int("group", 1)
    one_hot = np.tile(np.eye(places, dtype=kernel.dtype), (channels, 1))
    if image.shape[1] != channels or not np.array_equal(kernel.reshape(len(kernel), -1), one_hot):
        return None
    geometry = conv_geometry(node, image, (int(kernel.shape[2]), int(kernel.shape[3])))
    return None if isinstance(geometry, str) else geometry


def _turns(node: ir.Node | None, perm: tuple[int, ...]) -> bool:
    return (
        node is not None
        and is_op(node, "Transpose")
        and tuple(node.attributes.get_ints("perm", ())) == perm
    )

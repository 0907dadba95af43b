"""What ties features that only change their order: more than what ties features that may go.

A norm or a sum over all features gives the same whatever their order, a Softmax over them is
reordered with them, and a matmul that sums over a feature axis ties both of its operands:

    scores = q kᵀ        feature j of each head of q and of k are one
    z = p v              feature j of each head of v and of z are one

Where a Reshape cuts features into heads, they keep to their head: cells of ``group.cell``
features, each with an order of its own. Tables of embeddings and other constants that make
features are reordered themselves (select_features.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from bscompile.dialect import is_float_layer
from bscompile.passes.feature_layout import Layout, after_transpose, is_reshape
from bscompile.passes.graph import constant, is_op

if TYPE_CHECKING:
    from bscompile.passes.feature_groups import FeatureGroup

Ties = list[tuple[ir.Value, Layout]]

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_SUMS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare")
#: Same features in x and y; x may be a constant.
_PASSING = ("Cast", "Dropout", "Expand", "Slice", "Concat", "Split")
#: Operators of whose constants only these inputs hold features; of all others any may.
HOLDING = dict.fromkeys(("Gather", "Expand", "Slice", "Split", *_SUMS), (0,))


def tied_in_order(node: ir.Node, value: ir.Value, group: FeatureGroup) -> Ties | str | None:
    """The values that a node ties to one of its own; why it blocks; None to ask the usual rules."""
    layout = group.layouts[value]
    x = node.inputs[0] if node.inputs else None
    y = node.outputs[0] if node.outputs else None
    ties: Ties | str | None = None
    if x is None or y is None or value.shape is None or y.shape is None or is_float_layer(node):
        return None
    if is_reshape(node):
        ties = _through_reshape(node, value, group)
    elif is_op(node, "Transpose"):
        moved = after_transpose(node, layout, len(value.shape), backwards=value is y)
        ties = [(x if value is y else y, moved)]
    elif is_op(node, *_NORMS):
        ties = _through_norm(node, x, y, layout)
    elif is_op(node, "Softmax", "LogSoftmax"):
        ties = [(x, layout), (y, layout)]
    elif is_op(node, "MatMul"):
        ties = _through_matmul(node, value, layout)
    elif is_op(node, *_SUMS):
        ties = _through_sum(node, value, x, y, layout)
    elif is_op(node, "Gather"):
        ties = _through_gather(node, value, layout, group.size)
    elif is_op(node, *_PASSING):
        ties = _through_passing(node, layout)
    elif layout.cells is not None:
        ties = _elementwise_in_cells(node, value, layout)
    if ties is None and layout.cells is not None:
        return f"{node.op_type} meets it cut into heads"
    return ties


def _through_norm(node: ir.Node, x: ir.Value, y: ir.Value, layout: Layout) -> Ties | None:
    """A norm over the features, its scale and bias constants that are reordered along."""
    axis = node.attributes.get_int("axis", -1)
    last = y.shape is not None and axis in (-1, len(y.shape) - 1)
    fixed = all(v is None or constant(v) is not None for v in node.inputs[1:])
    return [(x, layout), (y, layout)] if last and fixed and layout == Layout(-1) else None


def _through_reshape(node: ir.Node, value: ir.Value, group: FeatureGroup) -> Ties | None:
    """[.., n] <-> [.., heads, n / heads], heads perhaps merged with what is before them.

    None where it is no such cut.
    """
    x, y, layout = node.inputs[0], node.outputs[0], group.layouts[value]
    other = x if value is y else y
    if other is None or other.shape is None or (value is not x and value is not y):
        return None
    dims = list(other.shape)
    if layout.cells is not None:
        if layout == Layout(-1, 1, -2) and dims and dims[-1] == group.size:
            return [(other, Layout(-1))]
        return [(other, layout)] if _cuts_before(value, other, layout.cells, group) else None
    if layout != Layout(-1) or len(dims) < 2 or dims[-1] == group.size:
        return None
    heads, inside = dims[-2:]
    if not isinstance(heads, int) or not isinstance(inside, int) or not inside:
        return None
    if group.size % inside or not heads or heads * inside % group.size:
        return None
    if group.cell not in (group.size, inside):
        return None
    group.cell = inside
    return [(other, Layout(-1, 1, -2))]


def _cuts_before(one: ir.Value, other: ir.Value, cells: int, group: FeatureGroup) -> bool:
    """Whether two shapes are one from the heads on, both with all heads on one axis."""
    shapes = [list(v.shape) for v in (one, other) if v.shape is not None]
    if len(shapes) < 2 or min(len(shape) for shape in shapes) < -cells:
        return False
    first, second = (shape[len(shape) + cells + 1 :] for shape in shapes)
    lengths = [shape[cells] for shape in shapes]
    heads = group.size // group.cell
    whole = all(isinstance(n, int) and n and n % heads == 0 for n in lengths)
    return whole and first == second and all(isinstance(n, int) for n in first)


def _through_matmul(node: ir.Node, value: ir.Value, layout: Layout) -> Ties | None:
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if a is None or b is None or constant(a) is not None or constant(b) is not None or a is b:
        return None
    if layout.run != 1 or (layout.cells is not None and layout.cells > -3):
        return None
    if (value is a and layout.axis == -1) or (value is b and layout.axis == -2):  # summed over
        other, axis = (b, -2) if value is a else (a, -1)
        if other.shape is None or value.shape is None or len(other.shape) < 2:
            return None
        if other.shape[axis] != value.shape[layout.axis]:
            return None
        if layout.cells is not None and (
            len(other.shape) < -layout.cells
            or other.shape[layout.cells] != value.shape[layout.cells]
        ):
            return None  # heads that share keys would have to share an order
        return [(other, Layout(axis, 1, layout.cells))]
    if layout.axis == -1 and (value is b or value is y):
        return _same_cells(value, y if value is b else b, layout)
    if layout.axis == -2 and (value is a or value is y):
        return _same_cells(value, y if value is a else a, layout)
    return None


def _same_cells(value: ir.Value, other: ir.Value, layout: Layout) -> Ties | None:
    for axis in (layout.axis, layout.cells):
        if axis is None:
            continue
        if other.shape is None or value.shape is None or len(other.shape) < -axis:
            return None
        if other.shape[axis] != value.shape[axis]:
            return None
    return [(other, layout)]


def _through_sum(
    node: ir.Node, value: ir.Value, x: ir.Value, y: ir.Value, layout: Layout
) -> Ties | None:
    """A sum over the features of all of them ends the group; one over other axes keeps them."""
    if x.shape is None or layout.cells is not None or (value is not x and value is not y):
        return None
    axes = list(node.attributes.get_ints("axes", ()))
    if not axes:
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if given is None:
            return None
        axes = [int(axis) for axis in given.reshape(-1)]
    axes = [axis - len(x.shape) if axis >= 0 else axis for axis in axes]
    if layout.axis in axes:
        return [(x, layout)] if value is x else None
    kept = bool(node.attributes.get_int("keepdims", 1))
    if not kept and any(axis > layout.axis for axis in axes):
        return None
    return [(x, layout), (y, layout)]


def _through_gather(node: ir.Node, value: ir.Value, layout: Layout, size: int) -> Ties | None:
    """Rows of a table, or of another value, taken along an axis before the features."""
    x, index, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if x is None or x.shape is None or index is None or value is index or layout.cells is not None:
        return None
    axis = node.attributes.get_int("axis", 0)
    axis = axis - len(x.shape) if axis >= 0 else axis
    if axis >= layout.axis or x.shape[layout.axis] != layout.length(size):
        return None
    return [(y, layout)] if constant(x) is not None else [(x, layout), (y, layout)]


def _through_passing(node: ir.Node, layout: Layout) -> Ties | None:
    """The same features on both sides, where the node does not touch their axis."""
    values = [v for v in (*node.inputs[:1], *node.outputs) if v is not None]
    if is_op(node, "Concat"):
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    ranks = {len(v.shape) for v in values if v.shape is not None}
    if any(v.shape is None for v in values) or len(ranks) != 1 or layout.cells is not None:
        return None
    lengths = {v.shape[layout.axis] for v in values if v.shape is not None}
    if len(lengths) != 1 or not all(isinstance(length, int) for length in lengths):
        return None
    if is_op(node, "Concat", "Split"):
        axis = node.attributes.get_int("axis", 0)
        if axis in (layout.axis, ranks.pop() + layout.axis):
            return None
    if is_op(node, "Slice") and not _slices_elsewhere(node, layout):
        return None
    return [(v, layout) for v in values if constant(v) is None]


def _slices_elsewhere(node: ir.Node, layout: Layout) -> bool:
    x = node.inputs[0]
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if axes is None or x is None or x.shape is None:
        return False
    return all(int(a) not in (layout.axis, len(x.shape) + layout.axis) for a in axes.reshape(-1))


def _elementwise_in_cells(node: ir.Node, value: ir.Value, layout: Layout) -> Ties | str:
    """Within heads: other operands may not tell the features of a head apart."""
    from bscompile.passes.feature_groups import ELEMENTWISE

    if not is_op(node, *ELEMENTWISE):
        return f"{node.op_type} meets it cut into heads"
    y = node.outputs[0]
    tied = [y]
    for other in node.inputs:
        if other is None or other is value:
            continue
        if other.shape is None:
            return f"an operand of {node.op_type} has an unknown shape"
        varies = len(other.shape) >= -layout.axis and other.shape[layout.axis] != 1
        if varies and constant(other) is not None:
            return f"a constant of {node.op_type} tells the features of a head apart"
        if varies:
            tied.append(other)
    assert layout.cells is not None
    reach = -min(layout.axis, layout.cells)
    for other in tied:
        dims = None if other.shape is None else list(other.shape)
        if dims is None or value.shape is None or len(dims) < reach:
            return f"{node.op_type} broadcasts its heads"
        if any(dims[a] != value.shape[a] for a in (layout.axis, layout.cells)):
            return f"{node.op_type} broadcasts its heads"
    return [(other, layout) for other in (*tied, value)]

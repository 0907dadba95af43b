"""A Gather that only reorders channels goes into the weights around it.

    y = x[..., p], z = y Wᵀ           ->  z = x W'ᵀ,  W'[:, p] = W           (the reading side)
    x = v Wᵀ + b,  y = x[..., p]      ->  y = v W'ᵀ + b',  W' = W[p], b' = b[p]   (the making side)

Training with shuffled or searched block patterns leaves such a Gather; the blocks show in only
one of the two orders. Every layer of the group (feature_groups.py) changes along, and constants of
elementwise operators between. What counts is the work of the layers in the new order, with blocks
found anew; keeping the Gather costs one entry per channel, so it stays where absorbing it
would break blocks apart.

The Gather is also found as Transpose, GatherND, Transpose, which is how torch writes x[..., p].

Refuses: indices that are not a permutation; groups that something else than layers makes or
reads, on both sides; Kronecker factors, which another order would destroy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import FOUND_KEY, Weight, is_float_layer
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.formats.detect import BlockPattern, detect_blocks
from bscompile.passes.base import GraphPass
from bscompile.passes.feature_groups import FeatureGroup, group_of
from bscompile.passes.feature_layout import Layout
from bscompile.passes.graph import constant, is_op, only_reader
from bscompile.passes.select_features import select_features
from bscompile.passes.shrink_plan import GroupLayer, Index, layers_of
from bscompile.passes.weight_slices import stored

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Shuffle:
    """y = x taken along ``axis`` in the order ``order``; the last node makes y."""

    nodes: tuple[ir.Node, ...]
    x: ir.Value
    y: ir.Value
    axis: int
    order: Index


@dataclass(frozen=True, eq=False)
class _Option:
    """One way to absorb a shuffle, and what the layers store then."""

    side: str
    group: FeatureGroup
    layers: list[GroupLayer]
    features: Index
    forms: list[tuple[Weight, BlockPattern]]

    @property
    def cost(self) -> int:
        return sum(_work(weight) for weight, _ in self.forms)

    @property
    def saved(self) -> int:
        return sum(_work(layer.op.weight) for layer in self.layers) - self.cost


class AbsorbPermutation(GraphPass):
    """Channel permutations -> other weights."""

    def rewrite(self, model: ir.Model) -> bool:
        """Try every Gather along a feature axis."""
        for node in list(model.graph):
            shuffle = _shuffle(node)
            if shuffle is not None and _meets_layers(shuffle):
                self._try(model.graph, node.name or shuffle.y.name or node.op_type, shuffle)
        return bool(self.applied)

    def _try(self, graph: ir.Graph, name: str, shuffle: _Shuffle) -> None:
        size = len(shuffle.order)
        if not np.array_equal(np.sort(shuffle.order), np.arange(size)):
            self.refused_for(name, "its indices repeat or leave out channels: no permutation")
            return
        inverse = np.argsort(shuffle.order)
        sides = (("reading", shuffle.y, inverse), ("making", shuffle.x, shuffle.order))
        options, reasons = [], []
        for side, value, features in sides:
            ignored = shuffle.nodes[-1] if side == "reading" else shuffle.nodes[0]
            group = group_of(graph, value, Layout(shuffle.axis), size, ignoring=ignored)
            layers = layers_of(group)
            reason = _against(shuffle, group, layers)
            if reason:
                reasons.append(f"{side} side: {reason}")
                continue
            forms = [_reordered(layer, features) for layer in layers]
            options.append(_Option(side, group, layers, features, forms))
        if not options:
            self.refused_for(name, "; ".join(reasons))
            return
        best = max(options, key=lambda option: option.saved)
        if best.saved + size < 0:
            self.refused_for(
                name,
                "absorbing it would break blocks apart: the layers around it would cost "
                f"{best.cost / (best.cost + best.saved):.1f} times what they do",
            )
            return
        weights = [weight for weight, _ in best.forms]
        select_features(graph, best.group, best.layers, best.features, weights)
        x = shuffle.nodes[0].inputs[0]  # the same place, but another layer may make it now
        assert x is not None
        if shuffle.y.is_graph_output():  # its name is part of the contract
            x.name, shuffle.y.name = shuffle.y.name, f"{shuffle.y.name}.shuffled"
        ir.convenience.replace_all_uses_with(shuffle.y, x, replace_graph_outputs=True)
        graph.remove(reversed(shuffle.nodes), safe=True)
        for node in graph:
            for layer, (_, pattern) in zip(best.layers, best.forms, strict=True):
                if is_float_layer(node) and node.name == layer.op.name:
                    node.metadata_props[FOUND_KEY] = pattern.to_json()
        names = ", ".join(layer.op.name for layer in best.layers)
        self.applied_to(name, f"the order of {size} channels went into {names}")


def _shuffle(node: ir.Node) -> _Shuffle | None:
    """The reordering that a node ends, if it is one by a constant."""
    y = node.outputs[0] if node.outputs else None
    if is_op(node, "Gather"):
        x, index = node.inputs[0], constant(node.inputs[1])
        axis = node.attributes.get_int("axis", 0)
        nodes: tuple[ir.Node, ...] = (node,)
    elif is_op(node, "Transpose"):
        middle = node.inputs[0].producer() if node.inputs[0] is not None else None
        if not is_op(middle, "GatherND") or middle is None or middle.inputs[0] is None:
            return None
        first = middle.inputs[0].producer()
        if first is None or not is_op(first, "Transpose"):
            return None
        if middle.attributes.get_int("batch_dims", 0) != 0:
            return None
        there, back = _perm(first), _perm(node)
        lonely = all(only_reader(n.outputs[0]) is not None for n in (first, middle))
        if not there or [there[i] for i in back] != list(range(len(there))) or not lonely:
            return None
        x, index, axis = first.inputs[0], constant(middle.inputs[1]), there[0]
        index = index[:, 0] if index is not None and index.shape[1:] == (1,) else None
        nodes = (first, middle, node)
    else:
        return None
    if x is None or y is None or index is None or index.ndim != 1 or x.shape is None:
        return None
    rank = len(x.shape)
    axis = axis - rank if axis >= 0 else axis
    size = x.shape[axis] if -rank <= axis else None
    if not isinstance(size, int) or len(index) != size or constant(x) is not None:
        return None
    order = np.where(index < 0, index + size, index).astype(np.int64)
    if y.shape is None or len(y.shape) != rank:
        return None
    return _Shuffle(nodes, x, y, axis, order)


def _perm(node: ir.Node) -> list[int]:
    return [int(i) for i in node.attributes.get_ints("perm", ())]


def _meets_layers(shuffle: _Shuffle) -> bool:
    """Whether it moves channels: the last axis of a matmul's values, or axis 1 of a feature map."""
    rank = 0 if shuffle.x.shape is None else len(shuffle.x.shape)
    return shuffle.axis == -1 or (shuffle.axis == -3 and rank == 4)


def _against(shuffle: _Shuffle, group: FeatureGroup, layers: list[GroupLayer]) -> str | None:
    """Why a group cannot be reordered, None if it can."""
    if shuffle.x in group.values and shuffle.y in group.values:
        return "both orders meet in one sum"
    if group.blockers:
        return group.blockers[0]
    if not layers:
        return "no layer"
    for layer in layers:
        if isinstance(layer.op.weight, KroneckerSum):
            return f"{layer.op.name} is factorized"
    return None


def _work(weight: Weight) -> int:
    """Entries to multiply, and four more for looking up each block."""
    blocks = weight.nnzb if isinstance(weight, BlockSparseMatrix) else 0
    return stored(weight) + 4 * blocks


def _reordered(layer: GroupLayer, features: Index) -> tuple[Weight, BlockPattern]:
    """The layer's weight in the new order, with its blocks found anew."""
    weight = layer.reordered(features)
    pattern = detect_blocks(weight)
    if pattern.is_block_sparse:
        return BlockSparseMatrix.from_dense(weight, pattern.block), pattern
    return weight, pattern

"""Features that never change or that nobody uses leave the graph, layers around them included.

    y = act(x W1ᵀ + b1), z = y W2ᵀ + b2, feature j of y:

    W1[j, :] = 0   y[j] = act(b1[j]) =: c is constant: row j of W1 and b1 and column j of W2 go,
                   and b2 gains W2[:, j] c
    W2[:, j] = 0   nobody uses y[j]: row j of W1 and b1 and column j of W2 go

The feature goes from every value that shares its axis: through elementwise operators with
constants or with each other (gates: act(0) times anything is 0), residual sums between layers,
pooling, and along channels of convolutions, also where these are flattened for a linear layer.
Heads of attention are features as well, each with all its entries: a head goes if nobody reads
what it gives, or if its values are zero. Removing rows may leave columns of the same layer
zero, so the search goes on until nothing changes. Graph inputs and outputs stay as they are.

Removed are single features, or whole blocks where single ones would break blocks apart;
sizes that fill vector registers are kept so.

Refuses: features that LayerNormalization, Softmax, a Reshape across them, or the graph's border
also sees; a constant c other than zero under zero padding; factors cut inside a block. A layer
never loses its last feature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import (
    dense_weight,
    is_float_layer,
)
from bscompile.passes.base import GraphPass
from bscompile.passes.feature_constants import Known, known_features
from bscompile.passes.feature_groups import (
    FeatureGroup,
    feature_axis,
    group_of,
)
from bscompile.passes.feature_layout import Layout
from bscompile.passes.select_features import select_features
from bscompile.passes.shrink_plan import (
    GroupLayer,
    Index,
    cheapest_cut,
    layers_of,
    removable_features,
)
from bscompile.passes.weight_slices import (
    zero_columns,
)

Array = npt.NDArray[Any]

_SWEEPS = 10


class Shrink(GraphPass):
    """Dead features -> smaller layers."""

    def rewrite(self, model: ir.Model) -> bool:
        """Sweep over the layers until nothing shrinks any more."""
        told: set[tuple[str, str]] = set()
        for _ in range(_SWEEPS):
            if not self._sweep(model.graph, told):
                break
        return bool(self.applied)

    def _sweep(self, graph: ir.Graph, told: set[tuple[str, str]]) -> bool:
        changed = False
        seen: set[ir.Value] = set()
        for node in list(graph):
            if not is_float_layer(node) or node.graph is not graph:
                continue
            for value, size in _ends(node):
                if value in seen:
                    continue
                for group in _groups(graph, value, Layout(feature_axis(node)), size):
                    shrunk = self._shrink(graph, group, told)
                    changed |= shrunk
                    if shrunk or not group.is_joined:
                        seen |= group.values
                    if shrunk:
                        break
        return changed

    def _shrink(self, graph: ir.Graph, group: FeatureGroup, told: set[tuple[str, str]]) -> bool:
        layers = layers_of(group)
        dead = [layer for layer in layers if layer.makes and layer.dead(group.size).any()]
        if not dead and not any(la.reads and zero_columns(la.op.weight).any() for la in layers):
            return False
        known = known_features(group)
        removable, why = removable_features(group, layers, known)
        if not removable.any() and not dead:
            return False
        name = (dead or layers)[0].op.name
        count = int(removable.sum()) or int(dead[0].dead(group.size).sum())
        plan = None
        if group.blockers or not removable.any():
            reason = group.blockers[0] if group.blockers else why
        else:
            plan = cheapest_cut(group, layers, removable)
            reason = "removing them would break blocks apart"
        if plan is None:
            text = f"{count} of {group.size} features are dead, but {reason}"
            if reason and (name, text) not in told:
                told.add((name, text))
                self.refused_for(name, text)
            return False
        keep, weights = plan
        gone = np.setdiff1d(np.arange(group.size), keep)
        shifts = [_shift(layer, known, gone) for layer in layers]
        select_features(graph, group, layers, keep, weights, shifts)
        names = ", ".join(layer.op.name for layer in layers)
        self.applied_to(name, f"{group.size} features become {len(keep)} in {names}")
        return True


def _groups(graph: ir.Graph, value: ir.Value, layout: Layout, size: int) -> Iterator[FeatureGroup]:
    """Features joined where a Reshape cuts between some of them (heads), then one by one."""
    group = group_of(graph, value, layout, size)
    if group.blockers and group.joined > 1 and size % group.joined == 0:
        joined = Layout(layout.axis, group.joined)
        wider = group_of(graph, value, joined, size // group.joined)
        wider.is_joined = True
        if not wider.blockers:
            yield wider
    yield group


def _ends(node: ir.Node) -> list[tuple[ir.Value, int]]:
    """The layer's output and input, with their numbers of features."""
    out, inner = (int(v) for v in node.attributes["shape"].as_ints())
    if node.op_type.endswith("Conv"):
        inner //= math.prod(node.attributes["kernel_shape"].as_ints())
    assert node.inputs[0] is not None
    return [(node.outputs[0], out), (node.inputs[0], inner)]


def _shift(layer: GroupLayer, known: dict[ir.Value, Known], gone: Index) -> Array:
    """W[:, gone] c: what the removed constants added to each output."""
    out = layer.op.shape[0]
    x = layer.node.inputs[0]
    if not layer.reads or x is None or not (known[x].mask & (known[x].values != 0))[gone].any():
        return np.zeros(out)
    taps = dense_weight(layer.op.weight).reshape(out, -1, layer.taps)[:, gone]
    constants = np.where(known[x].mask[gone], known[x].values[gone], 0.0)
    return np.asarray(taps.sum(axis=2, dtype=np.float64) @ constants)

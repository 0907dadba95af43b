"""Features that never change or that nobody uses leave the graph, layers around them included.

    y = act(x W1ᵀ + b1), z = y W2ᵀ + b2, feature j of y:

    W1[j, :] = 0   y[j] = act(b1[j]) =: c is constant: row j of W1 and b1 and column j of W2 go,
                   and b2 gains W2[:, j] c
    W2[:, j] = 0   nobody uses y[j]: row j of W1 and b1 and column j of W2 go

The feature goes from every value that shares its axis: through elementwise operators with
constants or with each other (gates: act(0) times anything is 0), residual sums between layers,
pooling, and along channels of convolutions. Removing rows may leave columns of the same layer
zero, so the search goes on until nothing changes. Graph inputs and outputs stay as they are.

Removed are single features, or whole blocks where single ones would break blocks apart;
sizes that fill vector registers are kept so.

Refuses: features that a Reshape (heads), LayerNormalization, Softmax, or the graph's border also
sees; a constant c other than zero under zero padding; factors cut inside a block. A layer never
loses its last feature.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import (
    FOUND_KEY,
    LinearOp,
    Weight,
    dense_weight,
    is_dialect,
    make_node,
    tensor_inputs,
)
from bscompile.passes.base import GraphPass
from bscompile.passes.feature_constants import Known, known_features
from bscompile.passes.feature_groups import (
    FeatureGroup,
    along_features,
    feature_axis,
    group_of,
    take_features,
)
from bscompile.passes.graph import add_initializer, constant, replace
from bscompile.passes.shrink_plan import (
    GroupLayer,
    Index,
    cheapest_cut,
    layers_of,
    removable_features,
)
from bscompile.passes.weight_slices import (
    zero_columns,
    zero_rows,
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
            if not is_dialect(node) or node.graph is not graph:
                continue
            for value, size in _ends(node):
                if value in seen:
                    continue
                group = group_of(graph, value, feature_axis(node), size)
                seen |= group.values
                changed |= self._shrink(graph, group, told)
        return changed

    def _shrink(self, graph: ir.Graph, group: FeatureGroup, told: set[tuple[str, str]]) -> bool:
        layers = layers_of(group)
        dead = [layer for layer in layers if layer.makes and zero_rows(layer.op.weight).any()]
        if not dead and not any(la.reads and zero_columns(la.op.weight).any() for la in layers):
            return False
        known = known_features(group)
        removable, why = removable_features(group, layers, known)
        if not removable.any() and not dead:
            return False
        name = (dead or layers)[0].op.name
        count = int(removable.sum()) or int(zero_rows(dead[0].op.weight).sum())
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
        self._apply(graph, group, layers, known, keep, weights)
        names = ", ".join(layer.op.name for layer in layers)
        self.applied_to(name, f"{group.size} features become {len(keep)} in {names}")
        return True

    def _apply(
        self,
        graph: ir.Graph,
        group: FeatureGroup,
        layers: list[GroupLayer],
        known: dict[ir.Value, Known],
        keep: Index,
        weights: list[Weight],
    ) -> None:
        for value in group.values:
            assert value.shape is not None
            dims = list(value.shape)
            dims[group.axis] = len(keep)
            value.shape = ir.Shape(dims)
        for node in group.between:
            for place, operand in enumerate(node.inputs):
                array = constant(operand)
                if array is not None and along_features(array, group.axis, group.size):
                    kept = take_features(array, group.axis, keep)
                    name = f"{node.name or node.op_type}.{place}"
                    node.replace_input_with(place, add_initializer(graph, name, kept))
        gone = np.setdiff1d(np.arange(group.size), keep)
        # Asked before any layer is replaced: then x is another value.
        shifts = [_shift(layer, known, gone) for layer in layers]
        for layer, weight, shift in zip(layers, weights, shifts, strict=True):
            steps, tensors = list(layer.op.epilogue), list(tensor_inputs(layer.node))
            x = layer.node.inputs[0]
            assert x is not None
            if shift.any():
                _add_bias(graph, layer.op.name, shift, steps, tensors)
            if layer.makes:
                _take_bias(graph, layer.op.name, keep, steps, tensors)
            op = LinearOp(layer.op.name, weight, tuple(steps), layer.op.conv)
            made = make_node(op, graph, x, tuple(tensors), layer.node.outputs[0])
            _keep_found(layer.node, made, weight)
            replace(graph, [layer.node], [made])


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


def _add_bias(
    graph: ir.Graph, name: str, shift: Array, steps: list[str], tensors: list[ir.Value]
) -> None:
    if steps and steps[0] == "bias":
        old = constant(tensors[0])
        assert old is not None
        tensors[0] = add_initializer(graph, f"{name}.bias", (old + shift).astype(old.dtype))
    else:
        steps.insert(0, "bias")
        tensors.insert(0, add_initializer(graph, f"{name}.bias", shift.astype(np.float32)))


def _take_bias(
    graph: ir.Graph, name: str, keep: Index, steps: list[str], tensors: list[ir.Value]
) -> None:
    with_tensor = [step for step in steps if step in ("bias", "residual")]
    for place, step in enumerate(with_tensor):
        if step == "bias":
            old = constant(tensors[place])
            assert old is not None
            tensors[place] = add_initializer(graph, f"{name}.bias", old[keep])


def _keep_found(old: ir.Node, new: ir.Node, weight: Weight) -> None:
    """What was recognised still holds, at the new density."""
    found = json.loads(old.metadata_props.get(FOUND_KEY, "{}"))
    if found:
        if not isinstance(weight, np.ndarray):
            found["density"] = round(weight.density, 6)
        new.metadata_props[FOUND_KEY] = json.dumps(found)

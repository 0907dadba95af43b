"""Which features of a group can go, and which going saves most.

A feature can go if every layer that reads the group either has zeros in its column or sees a
constant there that its bias can take over. They go one by one, or in runs that keep the blocks
of every layer as they are, whichever leaves less to store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import LinearOp, Weight, dense_weight, read_node, tensor_inputs
from bscompile.passes.feature_constants import Known
from bscompile.passes.feature_groups import FeatureGroup
from bscompile.passes.feature_layout import Layout
from bscompile.passes.graph import constant
from bscompile.passes.weight_slices import (
    granularity,
    stored,
    take_columns,
    take_rows,
    zero_columns,
    zero_rows,
)

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_VECTOR = 16  # features; layers of more than two vectors stay multiples of it


@dataclass(eq=False)
class GroupLayer:
    """A layer at the end of a group: it makes the features, reads them, or both.

    Attributes:
        node: The layer.
        op: What it means.
        outputs: Where the features lie in y, None where it does not make them.
        inputs: Where they lie in x, None where it does not read them.
    """

    node: ir.Node
    op: LinearOp
    outputs: Layout | None
    inputs: Layout | None

    @property
    def makes(self) -> bool:
        """Whether the features are outputs of the layer."""
        return self.outputs is not None

    @property
    def reads(self) -> bool:
        """Whether the features are inputs of the layer."""
        return self.inputs is not None

    @property
    def taps(self) -> int:
        """Columns of W per input feature."""
        if self.op.conv:
            return math.prod(self.op.conv.kernel)
        return self.inputs.run if self.inputs else 1

    def reordered(self, features: Index) -> Array:
        """W [out, in], dense, with feature j what ``features[j]`` was, on both of its sides."""
        weight = dense_weight(self.op.weight)
        if self.reads:
            columns = (features[:, None] * self.taps + np.arange(self.taps)).reshape(-1)
            weight = weight[:, columns]
        if self.outputs:
            weight = weight[self.outputs.entries(features)]
        return np.ascontiguousarray(weight)

    def dead(self, size: int) -> Mask:
        """Bool [size]: features whose rows of W are all zero."""
        assert self.outputs is not None
        rows = zero_rows(self.op.weight).reshape(size, self.outputs.run)
        return np.asarray(rows.all(axis=1))


def layers_of(group: FeatureGroup) -> list[GroupLayer]:
    """The layers at the ends of a group, each once."""
    makes, reads = set(group.producers), set(group.consumers)
    at = group.layouts
    return [
        GroupLayer(
            node,
            read_node(node),
            at[node.outputs[0]] if node in makes else None,
            at[node.inputs[0]] if node in reads and node.inputs[0] is not None else None,
        )
        for node in dict.fromkeys([*group.producers, *group.consumers])
    ]


def removable_features(
    group: FeatureGroup, layers: list[GroupLayer], known: dict[ir.Value, Known]
) -> tuple[Mask, str]:
    """Features that every reader can do without, and why some cannot go."""
    removable = np.ones(group.size, bool) & any(layer.reads for layer in layers)
    why = "" if removable.any() else "no layer reads them"
    for layer in layers:
        if not layer.reads:
            continue
        x = layer.node.inputs[0]
        assert x is not None
        unused = zero_columns(layer.op.weight).reshape(group.size, layer.taps).all(axis=1)
        constants = known[x]
        foldable = constants.mask
        if layer.op.conv and any(layer.op.conv.pads):
            padded = foldable & (constants.values != 0)
            if (padded & ~unused).any():
                why = f"{layer.op.name} pads them with zeros"
            foldable = foldable & ~padded
        if not _can_shift(layer):
            foldable = foldable & (constants.values == 0)
            why = f"the bias of {layer.op.name} is not constant"
        removable &= unused | foldable
    if removable.all() and removable.size:
        removable[0] = False  # a layer of no features is not a layer
    return removable, why


def _can_shift(layer: GroupLayer) -> bool:
    """Whether a constant can be added right after the product."""
    steps = layer.op.epilogue
    if "bias" not in steps:
        return True
    return steps[0] == "bias" and constant(tensor_inputs(layer.node)[0]) is not None


def cheapest_cut(
    group: FeatureGroup, layers: list[GroupLayer], removable: Mask
) -> tuple[Index, list[Weight]] | None:
    """What to keep and the new weights; None if no cut leaves the layers better off."""
    step = _common_step(layers)
    whole, alone = _kept(removable, step), _kept(removable, 1)
    before = sum(stored(layer.op.weight) for layer in layers)
    best: tuple[int, Index, list[Weight]] | None = None
    for keep in (whole,) if np.array_equal(whole, alone) else (whole, alone):
        if len(keep) == group.size:
            continue
        weights = [_cut(layer, keep) for layer in layers]
        kept = [weight for weight in weights if weight is not None]
        if len(kept) < len(weights):
            continue
        cost = sum(stored(weight) for weight in kept)
        # Zero blocks are not stored, so removing them saves nothing here and is still right;
        # an odd number of features must save something, or be far smaller.
        free = keep is whole or 2 * len(keep) <= group.size
        if cost < before + free and (best is None or cost < best[0]):
            best = cost, keep, kept
    return None if best is None else best[1:]


def _kept(removable: Mask, step: int) -> Index:
    """What stays when features go ``step`` at a time."""
    size = len(removable)
    padded = np.pad(~removable, (0, -size % step)).reshape(-1, step)
    runs: Mask = np.asarray(padded.any(axis=1))
    runs[0] |= not runs.any()
    vectors = size % _VECTOR == 0 and step % (_VECTOR // 2) != 0
    if vectors and runs.sum() * step > 2 * _VECTOR:
        for run in np.flatnonzero(~runs):
            if runs.sum() * step % _VECTOR == 0:
                break
            runs[run] = True
    return np.flatnonzero(np.repeat(runs, step)[:size])


def _common_step(layers: list[GroupLayer]) -> int:
    """Features that must go together for the blocks of every layer to stay as they are."""
    step = 1
    for layer in layers:
        rows, columns = granularity(layer.op.weight)
        if layer.outputs:
            step = math.lcm(step, math.lcm(rows, layer.outputs.run) // layer.outputs.run)
        if layer.reads:
            step = math.lcm(step, math.lcm(columns, layer.taps) // layer.taps)
    return step


def _cut(layer: GroupLayer, keep: Index) -> Weight | None:
    weight: Weight | None = layer.op.weight
    if layer.reads:
        columns = (keep[:, None] * layer.taps + np.arange(layer.taps)).reshape(-1)
        weight = take_columns(layer.op.weight, columns)
    if layer.outputs and weight is not None:
        weight = take_rows(weight, layer.outputs.entries(keep))
    return weight

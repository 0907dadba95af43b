"""Hidden features in an order that needs fewer execution blocks, the layers around them alike.

    y = act(x W1ᵀ + b1), z = y W2ᵀ     =     y' = act(x W1[p]ᵀ + b1[p]), z = y' W2[:, p]ᵀ

Any order p of the features of a closed group (feature_groups.py, feature_orders.py) gives the same
model: through elementwise operators, norms, residual sums, pooling, and within the heads of
attention. The order is found by clustering the features by the similarity of their supports in
all layers around (formats/cluster.py). Groups that share layers are decided together, since blocks
may show only when both sides of a layer are in order. What counts is the time of the layers
around: measured where somebody has, else as the target's planner expects it (order_plans.py). An
order that saves less than a few per cent is not taken.

Factors that such a shuffle hid, of one Kronecker term, are found again in the new order.

Refuses: groups that the graph's border or another operator sees; factorized layers, whose
factors another order would destroy.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import (
    FOUND_KEY,
    dense_weight,
    is_float_layer,
    make_node,
    read_node,
    tensor_inputs,
)
from bscompile.dialect.precision import PRECISIONS
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.formats.detect import BlockPattern
from bscompile.formats.recover import recover_kronecker
from bscompile.passes.base import GraphPass
from bscompile.passes.choice import OrderJudge, Planner, not_measured
from bscompile.passes.graph import replace
from bscompile.passes.order_plans import OrderPlan, decide
from bscompile.passes.order_search import Layers, OrderGroup, find_groups, regroup
from bscompile.passes.recognise_factorized import found_kronecker
from bscompile.passes.select_features import select_features
from bscompile.passes.shrink_plan import layers_of
from bscompile.passes.widen_float16 import WAS_FLOAT16_KEY

Index = npt.NDArray[np.int64]


class PermuteFeatures(GraphPass):
    """Scattered supports -> blocks, by another order of hidden features.

    Args:
        price: Plans a layer; its expected seconds are the price.
        precision: What layers are multiplied in.
        judge: Knows what layers take that were measured.
    """

    def __init__(
        self, price: Planner, precision: str = "float32", judge: OrderJudge = not_measured
    ) -> None:
        super().__init__()
        self._price, self._dtype, self._judge = price, PRECISIONS[precision], judge
        self._half = False  # whether the model came in float16

    def rewrite(self, model: ir.Model) -> bool:
        """Order every group of which it pays."""
        self._half = WAS_FLOAT16_KEY in model.metadata_props
        layers = Layers(model.graph, self._price, self._dtype)
        groups, refusals = find_groups(model.graph, layers)
        for name, reason in refusals:
            self.refused_for(name, reason)
        tied: nx.Graph[int] = nx.Graph()
        tied.add_nodes_from(range(len(groups)))
        for first, one in enumerate(groups):
            for second in range(first):
                if one.sparse & groups[second].sparse:
                    tied.add_edge(first, second)
        for component in nx.connected_components(tied):
            self._order(model.graph, layers, [groups[number] for number in sorted(component)])
        return bool(self.applied)

    def _order(self, graph: ir.Graph, layers: Layers, groups: list[OrderGroup]) -> None:
        """Decide for groups that share layers, and carry it out."""
        if not any(group.proposals for group in groups):
            return
        decision = decide(layers, groups, self._judge)
        if decision is None:
            return
        if decision.plan.orders:
            self._reorder(graph, layers, groups, decision.plan, decision.reason)
        elif decision.measured:
            name = layers.names[min(min(group.sparse) for group in groups)]
            self.refused_for(name, f"no other order of features pays: {decision.reason}")

    def _reorder(
        self, graph: ir.Graph, layers: Layers, groups: list[OrderGroup], plan: OrderPlan, why: str
    ) -> None:
        touched: set[int] = set()
        for number, order in plan.orders.items():
            group = groups[number]
            found = regroup(graph, group)
            ends = layers_of(found)
            weights = [end.reordered(order) for end in ends]
            select_features(graph, found, ends, order, weights)
            touched |= group.sparse
        told = []
        for place in sorted(touched):
            told.append(layers.story(place, groups, plan.orders))
            self._restate(graph, layers, place, groups, plan.orders)
        sizes = ", ".join(str(groups[number].size) for number in plan.orders)
        self.applied_to(
            layers.names[min(touched)],
            f"another order of {sizes} features, {why}; execution blocks: {'; '.join(told)}",
        )

    def _restate(
        self,
        graph: ir.Graph,
        layers: Layers,
        place: int,
        groups: list[OrderGroup],
        orders: dict[int, Index],
    ) -> None:
        """Give a reordered layer the blocks that it now has."""
        node = [node for node in graph if is_float_layer(node)][place]
        op = read_node(node)
        dense = dense_weight(op.weight)
        pattern, blocks, wins = layers.blocks_of(place, groups, orders)
        if wins:
            weight = BlockSparseMatrix.from_dense(dense, blocks)
            if not pattern.is_block_sparse:
                reason = f"zeros gathered into {blocks[0]}x{blocks[1]} blocks by another order"
                pattern = BlockPattern("block", blocks, weight.density, pattern.zeros, reason)
            factors = recover_kronecker(weight, accept_rounded=self._half)
            if isinstance(factors, KroneckerSum):
                pattern = found_kronecker(factors)
                op = op.with_weight(factors)
            else:
                op = op.with_weight(weight)
        x = node.inputs[0]
        assert x is not None
        made = make_node(op, graph, x, tuple(tensor_inputs(node)), node.outputs[0])
        made.metadata_props[FOUND_KEY] = pattern.to_json()
        replace(graph, [node], [made])

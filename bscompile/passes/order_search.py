"""What PermuteFeatures looks at: the supports of layers, the groups, and the price of an order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import Weight, dense_weight, is_float_layer, read_node
from bscompile.dialect.precision import Precision
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.formats.block_sparse import to_tiles
from bscompile.formats.cluster import by_equality, by_similarity, runs_needed
from bscompile.formats.detect import BlockPattern, detect_blocks
from bscompile.passes.choice import Choice, Planner, Posed
from bscompile.passes.choose_form import rows_of
from bscompile.passes.feature_groups import FeatureGroup, feature_axis, group_of
from bscompile.passes.feature_layout import Layout
from bscompile.passes.shrink_plan import layers_of

Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Sizes = npt.NDArray[np.float64]

FINEST = (4, 4)  # blocks that a weight without blocks of its own is cut into
_SPARSE = 0.5  # share of zeros from which an order can pay
_LESS = 0.8  # of the columns that runs needed before, at most, for a proposal to be priced
_RUNS = (4, 8, 16, 32)


@dataclass(frozen=True, eq=False)
class OrderGroup:
    """Features that may take another order.

    Attributes:
        size: Their number.
        sparse: Places, among the graph's layers, of those whose blocks an order can change.
        start: Place and side of the layer by which the group is found again.
        run: Entries per feature: more than one where whole heads are moved.
        proposals: Orders worth a price, by how they come about; none where the features are in
            a good one already.
        layouts: Place -> (where the features lie in y, entries of x per feature).
    """

    size: int
    sparse: frozenset[int]
    start: tuple[int, bool]
    proposals: dict[str, Index]
    layouts: dict[int, tuple[Layout | None, int]] = field(default_factory=dict)
    run: int = 1


class Layers:
    """The linear layers of a graph by their place, their supports, and prices.

    Args:
        graph: The graph; it may change, places stay.
        price: Plans a layer.
        dtype: What layers are multiplied in.
    """

    def __init__(self, graph: ir.Graph, price: Planner, dtype: Precision) -> None:
        self._plan, self._dtype = price, dtype
        self.nodes = [node for node in graph if is_float_layer(node)]
        self.place = {node: place for place, node in enumerate(self.nodes)}
        ops = [read_node(node) for node in self.nodes]
        self.names = [op.name for op in ops]
        self.rows = [rows_of(node) for node in self.nodes]
        self.factorized = [isinstance(op.weight, KroneckerSum) for op in ops]
        self._ops = [op.with_weight(np.zeros((0, 0))) for op in ops]
        self._blocky = [isinstance(op.weight, BlockSparseMatrix) for op in ops]
        self._whole = [_in_whole_blocks(op.weight) for op in ops]
        self._supports = [_support(op.weight) for op in ops]
        self._sizes = [_sizes(op.weight) for op in ops]
        self._priced: dict[tuple[Any, ...], tuple[float, Choice, BlockPattern]] = {}

    def is_sparse(self, place: int) -> bool:
        """Whether another order can change the blocks of a layer."""
        return self._supports[place] is not None

    def in_whole_blocks(self, place: int) -> bool:
        """Whether its zeros fill blocks that are longer than one along both axes."""
        return self._whole[place]

    def support(self, place: int) -> Mask:
        """Bool [out, in] of a sparse layer."""
        packed = self._supports[place]
        assert packed is not None
        bits, shape = packed
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)

    def sizes(self, place: int) -> tuple[Sizes, Sizes]:
        """(Σ W² of each row, of each column) of a sparse layer; see ``_sizes``."""
        return self._sizes[place]

    def total(self, groups: list[OrderGroup], orders: dict[int, Index]) -> float:
        """Seconds of all sparse layers around some groups, those in ``orders`` reordered."""
        return sum(self._look(place, groups, orders)[0] for place in _around(groups))

    def posed(self, groups: list[OrderGroup], orders: dict[int, Index]) -> list[Posed]:
        """All sparse layers around some groups, those in ``orders`` reordered."""
        return [self._pose(place, groups, orders)[0] for place in _around(groups)]

    def blocks_of(
        self, place: int, groups: list[OrderGroup], orders: dict[int, Index]
    ) -> tuple[BlockPattern, tuple[int, int], bool]:
        """(pattern, blocks to keep the weight in, whether a sparse form is expected to run)."""
        _, choice, pattern = self._look(place, groups, orders)
        blocks = pattern.block if pattern.is_block_sparse else FINEST
        return pattern, blocks, pattern.is_block_sparse or choice.form != "dense"

    def story(self, place: int, groups: list[OrderGroup], orders: dict[int, Index]) -> str:
        """Execution blocks before and after, such as ``fc1 16x16 9216 > 921``."""
        _, choice, _ = self._look(place, groups, orders)
        block = choice.block if choice.form != "dense" else FINEST
        counts = [
            int(to_tiles(mask, block).any(axis=(2, 3)).sum())
            for mask in (self.support(place), self._ordered(place, groups, orders))
        ]
        return f"{self.names[place]} {block[0]}x{block[1]} {counts[0]} > {counts[1]}"

    def _look(
        self, place: int, groups: list[OrderGroup], orders: dict[int, Index]
    ) -> tuple[float, Choice, BlockPattern]:
        mine = [n for n in orders if place in groups[n].sparse]
        key = (place, *((id(groups[n]), orders[n].tobytes()) for n in mine))
        if key not in self._priced:
            layer, pattern = self._pose(place, groups, orders)
            choice = self._plan(layer.op, layer.rows, layer.dtype, layer.step)
            self._priced[key] = choice.seconds, choice, pattern
        return self._priced[key]

    def _pose(
        self, place: int, groups: list[OrderGroup], orders: dict[int, Index]
    ) -> tuple[Posed, BlockPattern]:
        mask = self._ordered(place, groups, orders)
        pattern = detect_blocks(mask)
        weight: Weight = mask
        block = pattern.block if pattern.is_block_sparse else FINEST
        if self._blocky[place] or any(place in groups[number].sparse for number in orders):
            weight = BlockSparseMatrix.from_dense(mask, block)
        rows, step = self.rows[place]
        return Posed(self._ops[place].with_weight(weight), rows, self._dtype, step), pattern

    def _ordered(self, place: int, groups: list[OrderGroup], orders: dict[int, Index]) -> Mask:
        mask = self.support(place)
        for number, order in orders.items():
            outputs, taps = groups[number].layouts.get(place, (None, 0))
            if taps:
                mask = mask[:, (order[:, None] * taps + np.arange(taps)).reshape(-1)]
            if outputs is not None:
                mask = mask[outputs.entries(order)]
        return np.ascontiguousarray(mask)


def _around(groups: list[OrderGroup]) -> list[int]:
    """Places of the sparse layers around some groups."""
    return sorted({place for group in groups for place in group.sparse})


def find_groups(graph: ir.Graph, layers: Layers) -> tuple[list[OrderGroup], list[tuple[str, str]]]:
    """Every closed group around a sparse layer, and why others around scattered zeros are not.

    Groups of whole heads come last: the features within each have their order by then.

    Returns:
        (groups, refusals as (layer, reason)).
    """
    groups: list[OrderGroup] = []
    of_heads: list[OrderGroup] = []
    refusals: list[tuple[str, str]] = []
    seen: set[ir.Value] = set()
    met: set[ir.Value] = set()
    for place, node in enumerate(layers.nodes):
        if not layers.is_sparse(place):
            continue
        for made in (True, False):
            value = node.outputs[0] if made else node.inputs[0]
            if value is None or value in seen:
                continue
            found = _group_at(graph, node, made)
            seen |= found.values
            reason = _against(found, layers)
            if found.cell < min(found.size, _RUNS[-1]) and value not in met:
                heads = _group_at(graph, node, made, found.cell)
                met |= heads.values
                if _against(heads, layers) is None:
                    of_heads.append(_order_group(heads, layers, (place, made), found.cell))
            if reason is None:
                groups.append(_order_group(found, layers, (place, made)))
            elif not layers.in_whole_blocks(place):
                side = "outputs" if made else "inputs"
                text = f"its zeros are scattered, but its {side} keep their order: {reason}"
                refusals.append((layers.names[place], text))
    return groups + of_heads, refusals


def regroup(graph: ir.Graph, group: OrderGroup) -> FeatureGroup:
    """The group as the graph now has it, after other groups were reordered."""
    place, made = group.start
    node = [node for node in graph if is_float_layer(node)][place]
    return _group_at(graph, node, made, group.run)


def _group_at(graph: ir.Graph, node: ir.Node, made: bool, run: int = 1) -> FeatureGroup:
    op = read_node(node)
    taps = 1 if op.conv is None else op.conv.kernel[0] * op.conv.kernel[1]
    size = op.shape[0] if made else op.shape[1] // taps
    value = node.outputs[0] if made else node.inputs[0]
    assert value is not None
    return group_of(graph, value, Layout(feature_axis(node), run), size // run, only_order=True)


def _against(group: FeatureGroup, layers: Layers) -> str | None:
    """Why a group keeps its order, None if it need not."""
    if group.blockers:
        return group.blockers[0]
    ends = [layers.place[node] for node in (*group.producers, *group.consumers)]
    for place in ends:
        if layers.factorized[place]:
            return f"{layers.names[place]} is factorized"
    return None


def _order_group(
    group: FeatureGroup, layers: Layers, start: tuple[int, bool], run: int = 1
) -> OrderGroup:
    layouts, supports, sizes = {}, [], np.ones(group.size)
    for end in layers_of(group):
        place = layers.place[end.node]
        layouts[place] = (end.outputs, end.taps if end.reads else 0)
        if not layers.is_sparse(place):
            continue
        mask, (of_rows, of_columns) = layers.support(place), layers.sizes(place)
        if end.outputs is not None:
            sizes *= _relative(of_rows.reshape(group.size, -1).sum(axis=1))
            supports.append(mask.reshape(group.size, run, -1).any(axis=1))
        if end.reads:
            sizes *= _relative(of_columns.reshape(group.size, -1).sum(axis=1))
            columns = mask.reshape(len(mask), group.size, end.taps).transpose(1, 0, 2)
            whole = run > 1  # a head has its support wherever one of its features does
            supports.append(columns.any(axis=2) if whole else columns.reshape(group.size, -1))
    together = np.concatenate(supports, axis=1)
    sparse = frozenset(place for place in layouts if layers.is_sparse(place))
    scattered = any(not layers.in_whole_blocks(place) for place in sparse)
    runs = tuple(entries // run for entries in _RUNS if entries % run == 0 and entries > run)
    proposals = _proposals(together, sizes, group.cell, scattered, runs)
    return OrderGroup(group.size, sparse, start, proposals, layouts, run)


def _relative(sizes: Sizes) -> Sizes:
    """Sizes of about one, so that products of many stay finite."""
    return sizes / max(float(sizes.mean()), np.finfo(np.float64).tiny)


def _proposals(
    supports: Mask, sizes: Sizes, cell: int, scattered: bool, runs: tuple[int, ...]
) -> dict[str, Index]:
    """Orders after which runs need fewer columns; layers in blocks need a larger gain."""
    as_it_is = np.arange(len(supports))
    proposals = {}
    orders = {"similar supports side by side": by_similarity(supports, cell)}
    if scattered:  # those of whole blocks lie side by side
        orders = {"equal supports side by side": by_equality(supports, cell, sizes)} | orders
    for name, order in orders.items():
        ratios = [
            runs_needed(supports, order, run) / max(1, runs_needed(supports, as_it_is, run))
            for run in runs
        ]
        if min(ratios, default=1.0) < (_LESS if scattered else _LESS**2):
            proposals[name] = order
    return proposals


def _in_whole_blocks(weight: Weight) -> bool:
    return isinstance(weight, BlockSparseMatrix) and min(weight.block) > 1


def _sizes(weight: Weight) -> tuple[Sizes, Sizes]:
    """(Σ W² of each row, of each column); alike where no factors can hide in another order."""
    if isinstance(weight, KroneckerSum) or _in_whole_blocks(weight):
        return np.ones(weight.shape[0]), np.ones(weight.shape[1])
    dense = dense_weight(weight)
    rows = np.einsum("nk,nk->n", dense, dense, dtype=np.float64)
    return rows, np.einsum("nk,nk->k", dense, dense, dtype=np.float64)


def _support(weight: Weight) -> tuple[npt.NDArray[np.uint8], tuple[int, int]] | None:
    """The bits of W != 0, None where too few are zero or factors say more."""
    if isinstance(weight, KroneckerSum):
        return None
    mask = dense_weight(weight) != 0
    blocky = isinstance(weight, BlockSparseMatrix)
    if not blocky and np.count_nonzero(mask) > (1 - _SPARSE) * mask.size:
        return None
    return np.packbits(mask), (int(mask.shape[0]), int(mask.shape[1]))

"""Nodes in topological order; a cycle is named."""

from __future__ import annotations

import networkx as nx
import onnx

from bscompile.errors import ModelError


def sort_nodes(skeleton: onnx.ModelProto) -> None:
    """Put nodes into topological order, as near to the given one as possible."""
    graph = skeleton.graph
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    order = nx.DiGraph()
    order.add_nodes_from(range(len(graph.node)))
    for i, node in enumerate(graph.node):
        order.add_edges_from((maker[name], i) for name in _reads(node) if name in maker)
    try:
        indices = list(nx.lexicographical_topological_sort(order))
    except nx.NetworkXUnfeasible:
        names = [graph.node[i].name or graph.node[i].op_type for i, _ in nx.find_cycle(order)]
        raise ModelError(f"the graph is cyclic: {' -> '.join([*names[:8], names[0]])}") from None
    if indices != sorted(indices):
        nodes = [graph.node[i] for i in indices]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, its nested graphs' outer references included."""
    names, nodes = set(node.input), [node]
    while nodes:
        for attribute in nodes.pop().attribute:
            for graph in [attribute.g, *attribute.graphs]:
                for inner in graph.node:
                    names.update(inner.input)
                    nodes.append(inner)
                names.update(value.name for value in graph.output)
    return names

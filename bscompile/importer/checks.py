"""What onnx's own checker says badly or not at all, each as one clear line."""

from __future__ import annotations

import networkx as nx
import numpy as np
import onnx

from bscompile.errors import ModelError
from bscompile.importer.skeleton import Tensors, graphs

_LARGEST_EXPANSION = 1_000_000  # nodes after inlining
_WEIGHT_READERS = {"MatMul", "Gemm", "Conv", "ConvTranspose"}


def check_structure(skeleton: onnx.ModelProto, tensors: Tensors) -> None:
    """What onnx's checker says badly or not at all: emptiness, names, outputs, functions."""
    graph = skeleton.graph
    if not graph.node:
        raise ModelError("the graph has no nodes, there is nothing to compile")
    if not graph.output:
        raise ModelError("the graph has no outputs, there is nothing to compute")
    _check_text(skeleton, tensors)
    names = [value.name for value in graph.input]
    if len(set(names)) < len(names) or "" in names:
        raise ModelError("graph inputs have empty or duplicate names")
    for value in [*graph.input, *graph.output]:
        if not value.type.HasField("tensor_type"):
            raise ModelError(f"{value.name!r}: inputs and outputs must be tensors")
    made = {*names, *tensors, *(name for node in graph.node for name in node.output)}
    for value in graph.output:
        if value.name not in made or not value.name:
            raise ModelError(f"graph output {value.name!r} is computed by no node")
    _check_functions(skeleton)


def _check_text(skeleton: onnx.ModelProto, tensors: Tensors) -> None:
    """Names are text; protobuf hands broken UTF-8 over as bytes."""
    names: list[object] = [*tensors]
    for graph in graphs(skeleton):
        names += [value.name for value in [*graph.input, *graph.output, *graph.value_info]]
        for node in graph.node:
            names += [node.name, node.op_type, node.domain, *node.input, *node.output]
    for name in names:
        if not isinstance(name, str):
            raise ModelError(
                f"the name {name!r} is not valid UTF-8", hint="the file is damaged; export it again"
            )


def _check_functions(skeleton: onnx.ModelProto) -> None:
    """Local functions must not call themselves, nor expand beyond reason."""
    bodies = {(f.domain, f.name): f for f in skeleton.functions}
    calls = nx.DiGraph()
    calls.add_nodes_from(bodies)
    for key, function in bodies.items():
        for node in function.node:
            callee = (node.domain, node.op_type)
            if callee in bodies:
                calls.add_edge(key, callee)
    if not nx.is_directed_acyclic_graph(calls):
        raise ModelError("local functions call each other in a circle")
    sizes: dict[tuple[str, str], int] = {}
    for key in reversed(list(nx.topological_sort(calls))):
        sizes[key] = sum(sizes.get((n.domain, n.op_type), 1) for n in bodies[key].node)
    total = sum(sizes.get((n.domain, n.op_type), 1) for n in skeleton.graph.node)
    if total > _LARGEST_EXPANSION:
        raise ModelError(f"local functions expand to {total} nodes, more than is sensible")


def check_values(skeleton: onnx.ModelProto, tensors: Tensors) -> None:
    """No NaN anywhere; infinities only where a mask may want them, not in a layer's weight."""
    weights = {
        name
        for node in skeleton.graph.node
        if node.op_type in _WEIGHT_READERS
        for name in node.input
    }
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point():
            continue
        flat = tensor.numpy().reshape(-1)
        for start in range(0, flat.size, 1 << 22):
            part = flat[start : start + (1 << 22)]
            if np.isfinite(part).all():
                continue
            if np.isnan(part).any():
                raise ModelError(
                    f"initializer {name!r} holds NaN", hint="the training diverged; export again"
                )
            if name in weights:
                raise ModelError(f"weight {name!r} holds an infinity")

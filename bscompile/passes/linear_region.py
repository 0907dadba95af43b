"""Parts of a graph that are linear in one value, and their numpy meaning.

A region has one input x and one output y. Every node in it is linear in x: it moves entries
(Reshape, Transpose, Unsqueeze, Squeeze, Flatten, Identity), multiplies by constants (MatMul,
Einsum, Mul, Div, Gemm without C) or adds up results of the region (Add, Sub, Sum, Concat,
ReduceSum). So its meaning can be found by evaluating it, without knowing how it was spelled.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.passes.graph import constant, is_op

Array = npt.NDArray[Any]

_MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Identity", "ReduceSum")
_SCALES = ("MatMul", "Einsum", "Mul", "Div")
_SUMS = ("Add", "Sub", "Sum", "Concat")
_LARGEST_REGION = 400


class NotLinear(Exception):  # noqa: N818  # a finding, not an error
    """A region cannot be evaluated; the message says why."""


@dataclass(frozen=True, eq=False)
class LinearRegion:
    """The nodes between x and y, in topological order.

    Attributes:
        x: The one value that goes in.
        y: The one value of interest that comes out.
        nodes: What computes y from x; none is anything but linear in x.
    """

    x: ir.Value
    y: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def factors(self) -> int:
        """How many constant matrices x is multiplied by."""
        return sum(
            sum(constant(v) is not None for v in node.inputs)
            for node in self.nodes
            if is_op(node, "MatMul", "Einsum", "Gemm")
        )

    def leak(self) -> str | None:
        """Where an intermediate result goes besides, None if nowhere."""
        inside = set(self.nodes)
        for node in self.nodes:
            for value in node.outputs:
                if value is self.y:
                    continue
                if value.is_graph_output():
                    return f"its intermediate {value.name} is an output of the graph"
                for use in value.uses():
                    if use.node not in inside:
                        return f"its intermediate {value.name} is also read by {use.node.op_type}"
        return None

    def evaluate(
        self,
        x: Array,
        dims: Mapping[str, int],
        default: int,
        cache: dict[ir.Value, Array],
        resolved: dict[ir.Node, tuple[int, ...]],
        stretch: int = 1,
    ) -> Array:
        """Compute y in the dtype of x.

        Args:
            x: The input.
            dims: Sizes of symbolic dimensions by name.
            default: The size of a symbolic dimension that has no entry in ``dims``.
            cache: Constants already in that dtype; filled here.
            resolved: What each Reshape made; filled here, read when stretching.
            stretch: How many times more rows x has than the graph was made for. Every
                Reshape then scales the first of the sizes that it made without.

        Raises:
            NotLinear: a shape is unknown or does not fit.
        """
        values: dict[ir.Value, Array] = {self.x: x}

        def get(value: ir.Value | None) -> Array | None:
            if value is None or value in values:
                return None if value is None else values[value]
            if value not in cache:
                array = constant(value)
                if array is not None:
                    cache[value] = array.astype(x.dtype) if array.dtype.kind == "f" else array
            if value in cache:
                return cache[value]
            values[value] = _shape_arithmetic(value, get, dims, default)
            return values[value]

        for node in self.nodes:
            inputs = [get(value) for value in node.inputs]
            try:
                if stretch > 1 and node in resolved and inputs[0] is not None:
                    first, *others = resolved[node]
                    result = inputs[0].reshape(first * stretch, *others)
                else:
                    result = _compute(node, inputs)
            except (ValueError, IndexError) as error:
                raise NotLinear(f"the shapes around {node.op_type} do not fit") from error
            if is_op(node, "Reshape") and stretch == 1:
                resolved[node] = result.shape
            values[node.outputs[0]] = result
        return values[self.y]


def regions_from(
    x: ir.Value, nodes: Sequence[ir.Node], order: Mapping[ir.Node, int]
) -> Iterator[LinearRegion]:
    """Every region that begins at x and ends in a Reshape, Flatten or Transpose, nearest first.

    Args:
        x: Where to begin.
        nodes: The graph's nodes in topological order.
        order: The place of each node in ``nodes``.
    """
    flow: nx.DiGraph[ir.Node] = nx.DiGraph()
    derived = {x}
    waiting = sorted({order[use.node] for use in x.uses() if use.node in order})
    while waiting and len(flow) < _LARGEST_REGION:
        node = nodes[heapq.heappop(waiting)]
        if node in flow or not _is_linear(node, derived):
            continue
        flow.add_node(node)
        sources = (v.producer() for v in node.inputs if v in derived and v is not x)
        flow.add_edges_from((source, node) for source in sources)
        derived.add(node.outputs[0])
        for use in node.outputs[0].uses():
            if use.node in order:
                heapq.heappush(waiting, order[use.node])
        if is_op(node, "Reshape", "Flatten", "Transpose"):
            inside = sorted({node, *nx.ancestors(flow, node)}, key=order.__getitem__)
            yield LinearRegion(x, node.outputs[0], tuple(inside))


def _is_linear(node: ir.Node, derived: set[ir.Value]) -> bool:
    """Whether a node is linear in the derived values that it reads."""
    inputs = [value for value in node.inputs if value is not None]
    moved = [value in derived for value in inputs]
    if is_op(node, *_MOVES):
        return moved[0] and not any(moved[1:])
    if is_op(node, *_SUMS):
        return all(moved)
    if is_op(node, "Gemm"):
        return len(inputs) == 2 and moved[0] and constant(inputs[1]) is not None
    if not is_op(node, *_SCALES) or (is_op(node, "Div") and not moved[0]):
        return False
    fixed = [constant(v) is not None for v, m in zip(inputs, moved, strict=True) if not m]
    return moved.count(True) == 1 and all(fixed)


def _compute(node: ir.Node, inputs: list[Array | None]) -> Array:
    """One node of a region, or of shape arithmetic, in numpy."""
    x, rest = inputs[0], inputs[1:]
    assert x is not None
    op, attributes = node.op_type, node.attributes
    second = rest[0] if rest else None
    result: Any
    if op == "Reshape":
        assert second is not None
        result = x.reshape(_target(x, second, bool(attributes.get_int("allowzero", 0))))
    elif op == "Flatten":
        axis = attributes.get_int("axis", 1)
        result = x.reshape(int(np.prod(x.shape[:axis])), -1)
    elif op == "Transpose":
        result = x.transpose(attributes.get_ints("perm", tuple(range(x.ndim))[::-1]))
    elif op == "Unsqueeze":
        assert second is not None
        result = np.expand_dims(x, tuple(second.tolist()))
    elif op == "Squeeze":
        result = np.squeeze(x, None if second is None else tuple(second.tolist()))
    elif op in ("Identity", "Cast"):
        result = x
    elif op in ("ReduceSum", "ReduceProd"):
        reduce = np.sum if op == "ReduceSum" else np.prod
        axes = None if second is None else tuple(second.tolist())
        if axes == () or (axes is None and attributes.get_int("noop_with_empty_axes", 0) == 1):
            raise NotLinear(f"{op} over no axes")
        result = reduce(x, axis=axes, keepdims=bool(attributes.get_int("keepdims", 1)))
    elif op == "Concat":
        axis = attributes["axis"].as_int()
        result = np.concatenate([v for v in inputs if v is not None], axis)
    elif op == "Einsum":
        equation = attributes["equation"].as_string()
        result = np.einsum(equation, *[v for v in inputs if v is not None], optimize=True)
    elif op == "Gemm":
        assert second is not None
        left = x.T if attributes.get_int("transA", 0) else x
        right = second.T if attributes.get_int("transB", 0) else second
        result = left @ right * x.dtype.type(attributes.get_float("alpha", 1.0))
    elif op == "Sum":
        result = sum(v for v in inputs if v is not None)
    else:
        assert second is not None
        result = _BINARY[op](x, second)
    return np.asarray(result)


def _divide(a: Array, b: Array) -> Any:
    return a / b if a.dtype.kind == "f" else a // b


_BINARY: dict[str, Callable[[Array, Array], Any]] = {
    "MatMul": np.matmul,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
}


def _target(x: Array, wanted: Array, allow_zero: bool) -> list[int]:
    """The shape that Reshape makes of x."""
    sizes = [int(size) for size in wanted]
    return sizes if allow_zero else [size or x.shape[i] for i, size in enumerate(sizes)]


_ARITHMETIC = (
    *("Add", "Sub", "Mul", "Div", "ReduceProd"),
    *("Concat", "Unsqueeze", "Squeeze", "Reshape", "Identity", "Cast"),
)


def _shape_arithmetic(
    value: ir.Value,
    get: Callable[[ir.Value | None], Array | None],
    dims: Mapping[str, int],
    default: int,
) -> Array:
    """An integer result that depends on shapes alone, such as the target of a Reshape."""
    node = value.producer()
    if is_op(node, "Shape"):
        assert node is not None
        begin, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 2**31)
        source = node.inputs[0]
        if source is None or source.shape is None:
            raise NotLinear("a shape is unknown")
        sizes = [d if isinstance(d, int) else dims.get(str(d.value), default) for d in source.shape]
        return np.array(sizes[begin:end], np.int64)
    if is_op(node, "Gather", "Slice"):
        assert node is not None
        sizes_of, *where = (get(v) for v in node.inputs)
        assert sizes_of is not None
        assert where[0] is not None
        if node.op_type == "Gather":
            return np.asarray(sizes_of.take(where[0], axis=node.attributes.get_int("axis", 0)))
        if sizes_of.ndim != 1 or len(where) < 2 or where[1] is None or len(where) > 3:
            raise NotLinear("a Slice of a shape that is not a plain range")
        return np.asarray(sizes_of[int(where[0][0]) : int(where[1][0])])
    if not is_op(node, *_ARITHMETIC):
        what = node.op_type if node is not None else "an input of the graph"
        raise NotLinear(f"a shape depends on {what}")
    assert node is not None
    return _compute(node, [get(v) for v in node.inputs])

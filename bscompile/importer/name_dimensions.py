"""Name symbolic dimensions by what they are: ``batch*seq``, not ``unk__7``.

onnx's shape inference gives a fresh name to what it cannot compute: the target of a Reshape or
Expand that the graph computes, a Range, a Slice. Two tensors of one shape then do not look so,
and no residual is fused. Here sizes that the graph computes are followed as expressions of the
inputs' dimensions, and every shape is inferred once more, node by node, from the names so far.

A name is a promise: equal names are equal sizes in every run that does not fail anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
from onnx import numpy_helper

from bscompile.importer.target_shapes import RULES, Dim, Dims
from bscompile.sizes import Known, evaluate, known
from bscompile.sizes.symbols import SympyAlgebra, symbol

_ALGEBRA = SympyAlgebra()
_WHOLE = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)


def name_dimensions(skeleton: onnx.ModelProto) -> None:
    """Rewrite the shapes of intermediate values and outputs, in place.

    Args:
        skeleton: Checked, in topological order, its shapes inferred.
    """
    dims = (d for v in skeleton.graph.input for d in v.type.tensor_type.shape.dim)
    if any(not d.HasField("dim_value") for d in dims):
        _Walk(skeleton).run()


class _Walk:
    """What is known on the way through the nodes: types, sizes by name, small tensors."""

    def __init__(self, skeleton: onnx.ModelProto) -> None:
        graph = skeleton.graph
        self._nodes = graph.node
        self._opsets = list(skeleton.opset_import)
        self._opset = next(o.version for o in self._opsets if o.domain in ("", "ai.onnx"))
        self._inferred = {v.name: v.type for v in [*graph.value_info, *graph.output]}
        self._types: dict[str, onnx.TypeProto] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._known: dict[str, Known] = {}
        self._sizes: dict[str, Any] = {}
        self._numbers = count()
        kinds = [*(v.type for v in graph.input), *self._inferred.values()]
        self._taken = {d.dim_param for kind in kinds for d in kind.tensor_type.shape.dim}
        for value in graph.input:
            self._take_input(value)
        for tensor in graph.initializer:
            self._take_tensor(tensor.name, tensor)

    def run(self) -> None:
        """Follow every node of the standard domain; others keep the shapes that they have."""
        for node in self._nodes:
            if node.domain not in ("", "ai.onnx"):
                for name in node.output:
                    self._set(name, self._dims_of(self._inferred.get(name)))
                continue
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            self._infer(node, attributes)
            if node.op_type == "Constant":
                self._take_constant(node.output[0], attributes)
            else:
                self._evaluate(node, attributes)

    def _take_input(self, value: onnx.ValueInfoProto) -> None:
        kind = onnx.TypeProto()
        kind.CopyFrom(value.type)
        for dim in kind.tensor_type.shape.dim:
            if dim.dim_param.isidentifier():
                self._sizes[dim.dim_param] = symbol(dim.dim_param)
            elif not dim.HasField("dim_value"):  # «2*batch» is a wish, nobody holds it to that
                self._write(dim, self._unknown(least=1))
        self._types[value.name] = kind

    def _take_tensor(self, name: str, tensor: onnx.TensorProto) -> None:
        self._types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        self._tensors[name] = tensor
        if tensor.data_type in _WHOLE:
            array = numpy_helper.to_array(tensor)
            value = known(array.astype(object), array.dtype.name)
            if value is not None:
                self._known[name] = value

    def _take_constant(self, name: str, attributes: Mapping[str, Any]) -> None:
        whole = attributes.get("value_ints", attributes.get("value_int"))
        if whole is not None:
            self._take_tensor(name, numpy_helper.from_array(np.array(whole, np.int64)))
        elif "value" in attributes:
            self._take_tensor(name, attributes["value"])

    def _infer(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        """The shapes of a node's outputs, from the best of three sources for each size."""
        again = self._infer_again(node)
        inputs = [self._dims_of(self._types.get(name)) for name in node.input]
        values = [self._known.get(name) for name in node.input]
        rule = RULES.get(node.op_type)
        ours = None if rule is None else rule(inputs, values, attributes, _ALGEBRA)
        for place, name in enumerate(node.output):
            sources = [self._dims_of(self._inferred.get(name)), self._dims_of(again.get(name))]
            sources += [ours] if place == 0 else []
            self._set(name, _best(sources))

    def _infer_again(self, node: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        """What onnx says of this node alone."""
        if any(name and name not in self._types for name in node.input):
            return {}
        if any(a.HasField("g") or len(a.graphs) for a in node.attribute):
            return {}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
            found: dict[str, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in node.input if name},
                {name: self._tensors[name] for name in node.input if name in self._tensors},
                opset_imports=self._opsets,
            )
        except Exception:  # of many kinds; what the inference of the whole model said stays
            return {}
        return found

    def _set(self, name: str, dims: Dims | None) -> None:
        """Write the shape of a value into the model."""
        kind = self._inferred.get(name)
        if kind is None:
            return
        if dims is not None:
            del kind.tensor_type.shape.dim[:]
            for size in dims:
                self._write(kind.tensor_type.shape.dim.add(), size)
        self._types[name] = kind

    def _dims_of(self, kind: onnx.TypeProto | None) -> Dims | None:
        """A shape with the sizes known by name; onnx's own placeholders say nothing here."""
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        return [
            d.dim_value if d.HasField("dim_value") else self._sizes.get(d.dim_param)
            for d in kind.tensor_type.shape.dim
        ]

    def _write(self, into: onnx.TensorShapeProto.Dimension, size: Dim) -> None:
        if isinstance(size, int):
            into.dim_value = size
            return
        size = self._unknown() if size is None else size
        into.dim_param = str(size)
        self._sizes[into.dim_param] = size

    def _unknown(self, least: int = 0) -> Any:
        name = next(n for n in (f"unk__{i}" for i in self._numbers) if n not in self._taken)
        return symbol(name, least)

    def _evaluate(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        """Follow what the graph computes from sizes."""
        inputs = [self._known.get(name) for name in node.input]
        results: Sequence[Known | None] | None = None
        if node.op_type in ("Shape", "Size"):
            dims = self._dims_of(self._types.get(node.input[0]))
            if dims is not None and all(d is not None for d in dims):
                results = _sizes(node.op_type, dims, attributes)
        elif all(v is not None or not name for v, name in zip(inputs, node.input, strict=True)):
            results = evaluate(node.op_type, inputs, attributes, _ALGEBRA)
        for name, result in zip(node.output, results or (), strict=False):
            if result is not None:
                self._known[name] = result


def _sizes(
    op_type: str, dims: Dims, attributes: Mapping[str, Any]
) -> Sequence[Known | None] | None:
    """What Shape or Size gives for a tensor of these sizes."""
    if op_type == "Size":
        return evaluate("ReduceProd", [known(dims, "int64")], {"keepdims": 0}, _ALGEBRA)
    return (known(dims[attributes.get("start", 0) : attributes.get("end")], "int64"),)


def _best(sources: list[Dims | None]) -> Dims | None:
    """For each size a number where one of the sources has it, else an expression."""
    shapes = [s for s in sources if s is not None]
    fitting = [s for s in shapes if len(s) == len(shapes[0])]
    if not fitting:
        return None
    dims: Dims = []
    for sizes in zip(*fitting, strict=True):
        said = [size for size in sizes if size is not None]
        dims.append(next((s for s in said if isinstance(s, int)), said[0] if said else None))
    return dims

"""From an ONNX file to a checked ``onnx_ir.Model`` with shapes; every failure is one clear line.

The weights are set aside first (external ones memory-mapped), so that what onnx's C++ checker,
inliner, version converter and shape inference see is a skeleton of kilobytes, whatever the
model's size; they are attached again at the end. Small tensors stay in the skeleton, because
shape inference reads them (Reshape's target, Slice's ends).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.numpy_helper
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bscompile.dialect import DOMAIN
from bscompile.errors import ModelError
from bscompile.external_data import map_external, tensor_nbytes
from bscompile.passes.graph import bits_of, nbytes_of

OLDEST_OPSET = 13
# Bodies of our functions use Gelu, and a model may not mix versions of an operator.
LOWEST_OPSET_AFTER_IMPORT = 20
FIXED_INPUTS_KEY = "bscompile.fixed_inputs"  # metadata: inputs whose default was compiled in

_PROTOBUF_LIMIT = 2**31
_SKELETON_TENSOR_BYTES = 1024
_LARGEST_VALUE_BYTES = 2**40
_LARGEST_SPARSE_BYTES = 2**31
_LARGEST_EXPANSION = 1_000_000  # nodes after inlining
_WEIGHT_READERS = {"MatMul", "Gemm", "Conv", "ConvTranspose"}

Tensors = dict[str, ir.TensorProtocol]


def load_model(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """Read, check and normalise a model.

    Args:
        source: The path of an .onnx file, or a model in memory (which is left unchanged).

    Returns:
        A new model: local functions inlined, opset at least 20, nodes in topological order,
        shapes inferred, initializers no longer among the inputs.

    Raises:
        ModelError: the file or the model is broken, hostile or not supported.
    """
    try:
        return _load(source)
    except UnicodeDecodeError as error:  # anywhere that a damaged string is looked at
        raise ModelError(
            f"the model holds text that is not UTF-8: {error.object[:20]!r}",
            hint="the file is damaged; export it again",
        ) from None


def _load(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    base: Path | None = None
    if isinstance(source, ir.Model):
        skeleton, tensors = _split_ir(source)
    else:
        if isinstance(source, onnx.ModelProto):
            proto = source
        else:
            path = Path(source)
            base, proto = path.parent, _parse(path)
        _check_versions(proto)
        skeleton, tensors = _split_proto(proto, base)
        del proto
    _check_versions(skeleton)
    _check_structure(skeleton, tensors)
    _check_values(skeleton, tensors)
    fixed = _drop_inputs_with_defaults(skeleton, tensors)
    _sort_nodes(skeleton)
    inputs = [value.name for value in skeleton.graph.input]
    skeleton = _normalise(_declare(skeleton, tensors))
    model = _attach(skeleton, tensors, inputs)
    if fixed:
        model.metadata_props[FIXED_INPUTS_KEY] = ",".join(fixed)
    return model


# ---------------------------------------------------------------- reading


def _parse(path: Path) -> onnx.ModelProto:
    """The file's message, without its external data."""
    if path.is_dir():
        raise ModelError(f"{path} is a directory", hint="name the .onnx file inside it")
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is not a regular file")
        size = path.stat().st_size
        if size >= _PROTOBUF_LIMIT:
            raise ModelError(
                f"{path}: {size} bytes, but one ONNX file holds less than 2 GiB",
                hint="export with external data (external_data=True)",
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    if not data:
        raise ModelError(f"{path} is empty", hint="export the model again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RecursionError):
        raise ModelError(
            f"{path} is not an ONNX file, or it is cut short", hint="export or copy it again"
        ) from None
    return proto


def _check_versions(proto: onnx.ModelProto) -> None:
    """IR version and opset are ones that the onnx package knows."""
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError("not an ONNX model: no graph or no IR version")
    if not 3 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"IR version {proto.ir_version}, but 3 to {onnx.IR_VERSION} are supported",
            hint="upgrade the onnx package, or export with an older version",
        )
    versions = {
        (o.domain or "").replace("ai.onnx", "", 1): o.version
        for o in proto.opset_import
        if o.domain in ("", "ai.onnx")
    }
    opset, newest = versions.get(""), onnx.defs.onnx_opset_version()
    if opset is None:
        raise ModelError("the model names no opset of the ONNX domain", hint="export it again")
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"opset {opset}, but {OLDEST_OPSET} to {newest} are supported",
            hint="export the model with opset_version=20",
        )


# ---------------------------------------------------------------- weights aside


def _split_proto(proto: onnx.ModelProto, base: Path | None) -> tuple[onnx.ModelProto, Tensors]:
    """A copy of the model without initializers, and those, by name."""
    skeleton = onnx.ModelProto()
    _copy_fields(proto, skeleton, without="graph")
    _copy_fields(proto.graph, skeleton.graph, without="initializer")
    tensors: Tensors = {}

    def put(name: str, tensor: ir.TensorProtocol) -> None:
        if not name or name in tensors:
            raise ModelError(f"initializer name {name!r} is empty or used twice")
        tensors[name] = tensor

    for tensor in proto.graph.initializer:
        put(tensor.name, _read_tensor(tensor, base))
    for sparse in proto.graph.sparse_initializer:
        put(sparse.values.name, _densify(sparse, base))
    del skeleton.graph.sparse_initializer[:]
    for graph in _graphs(skeleton):
        if len(graph.sparse_initializer):
            raise ModelError(f"graph {graph.name!r}: sparse initializer in a nested graph")
        for tensor in graph.initializer:
            _inline_tensor(tensor, base)
        for node in graph.node:
            _inline_attributes(node, base)
    for function in skeleton.functions:
        for node in function.node:
            _inline_attributes(node, base)
    return skeleton, tensors


def _split_ir(model: ir.Model) -> tuple[onnx.ModelProto, Tensors]:
    """The same for a model in onnx_ir's form."""
    copy = model.clone()
    tensors: Tensors = {}
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is None:
            raise ModelError(f"initializer {name!r} holds no tensor")
        tensors[name] = _loaded(name, value.const_value)
        if not value.is_graph_input():
            del copy.graph.initializers[name]
        value.const_value = None
    copy.graph.initializers.clear()
    return ir.serde.serialize_model(copy), tensors


def _loaded(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor with its external data mapped."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    try:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    except (OSError, ValueError) as error:
        raise ModelError(f"tensor {name!r}: external data: {_one_line(error)}") from None


def _copy_fields(
    source: onnx.ModelProto | onnx.GraphProto,
    into: onnx.ModelProto | onnx.GraphProto,
    without: str,
) -> None:
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if field.is_repeated:
            getattr(into, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(into, field.name).CopyFrom(value)
        else:
            setattr(into, field.name, value)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every nested one, those in function bodies included."""
    yield proto.graph
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    while nodes:
        for attribute in nodes.pop().attribute:
            for graph in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                yield graph
                nodes.extend(graph.node)


def _read_tensor(tensor: onnx.TensorProto, base: Path | None) -> ir.TensorProtocol:
    """An initializer as an array: mapped when external, copied out of the message otherwise."""
    nbytes = tensor_nbytes(tensor)
    dtype = ir.DataType(tensor.data_type)
    shape = ir.Shape(list(tensor.dims))
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        _check_inline(tensor, nbytes)
        if dtype == ir.DataType.STRING:
            return ir.StringTensor(list(tensor.string_data), shape=shape, name=tensor.name)
        return ir.tensor(onnx.numpy_helper.to_array(tensor), dtype=dtype, name=tensor.name)
    if dtype == ir.DataType.STRING:
        raise ModelError(f"tensor {tensor.name!r}: strings cannot be external data")
    data = map_external(tensor, base)
    if bits_of(dtype) < 8:
        packed = onnx.TensorProto()
        packed.CopyFrom(tensor)
        _make_inline(packed, data)
        return ir.tensor(onnx.numpy_helper.to_array(packed), dtype=dtype, name=tensor.name)
    array = data.view(np.ndarray).view(dtype.numpy()).reshape(tuple(tensor.dims))
    return ir.Tensor(array, dtype=dtype, shape=shape, name=tensor.name)


def _check_inline(tensor: onnx.TensorProto, nbytes: int) -> None:
    """The message holds as many bytes or numbers as the shape claims."""
    if tensor.HasField("segment"):
        raise ModelError(f"tensor {tensor.name!r}: split tensors are not supported")
    if tensor.HasField("raw_data"):
        got, wanted = len(tensor.raw_data), nbytes
    else:
        dtype = ir.DataType(tensor.data_type)
        counts = [
            len(getattr(tensor, f"{kind}_data"))
            for kind in ("float", "int32", "string", "int64", "double", "uint64")
        ]
        wanted = math.prod(tensor.dims)
        if bits_of(dtype) < 8:
            wanted = nbytes
        elif dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            wanted *= 2
        got = max(counts)
    if got != wanted:
        raise ModelError(
            f"tensor {tensor.name!r}: shape {list(tensor.dims)} needs {wanted} "
            f"{'bytes' if tensor.HasField('raw_data') else 'values'}, the file holds {got}",
            hint="the file is damaged; export it again",
        )


def _inline_tensor(tensor: onnx.TensorProto, base: Path | None) -> None:
    """Check a tensor of a node or nested graph; read external data into the message."""
    nbytes = tensor_nbytes(tensor)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _make_inline(tensor, map_external(tensor, base))
    else:
        _check_inline(tensor, nbytes)


def _make_inline(tensor: onnx.TensorProto, data: np.ndarray) -> None:
    tensor.raw_data = data.tobytes()
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.DEFAULT


def _inline_attributes(node: onnx.NodeProto, base: Path | None) -> None:
    for attribute in node.attribute:
        for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
            _inline_tensor(tensor, base)
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        if sparse or len(attribute.sparse_tensors):
            raise ModelError(
                f"node {node.name!r}: sparse tensor in an attribute",
                hint="store it as an initializer",
            )


def _densify(sparse: onnx.SparseTensorProto, base: Path | None) -> ir.TensorProtocol:
    """A COO initializer as a dense array."""
    name, dims = sparse.values.name, tuple(sparse.dims)
    values = _read_tensor(sparse.values, base).numpy()
    indices = _read_tensor(sparse.indices, base).numpy()
    size = math.prod(dims)
    if any(d < 0 for d in dims) or size * values.itemsize > _LARGEST_SPARSE_BYTES:
        raise ModelError(f"sparse initializer {name!r}: shape {list(dims)} is too large")
    if values.ndim != 1 or len(indices) != len(values) or indices.dtype != np.int64:
        raise ModelError(f"sparse initializer {name!r}: values and int64 indices do not match")
    limits = np.array(dims if indices.ndim == 2 else (size,), dtype=np.int64)
    places = indices.reshape(len(values), -1)
    if places.shape[1] != len(limits) or (places < 0).any() or (places >= limits).any():
        raise ModelError(f"sparse initializer {name!r}: an index lies outside {list(dims)}")
    dense = np.zeros(dims, dtype=values.dtype)
    if indices.ndim == 2:
        dense[tuple(places.T)] = values
    else:
        dense.reshape(-1)[places[:, 0]] = values
    return ir.tensor(dense, name=name)


# ---------------------------------------------------------------- checks


def _check_structure(skeleton: onnx.ModelProto, tensors: Tensors) -> None:
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
    for graph in _graphs(skeleton):
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


def _check_values(skeleton: onnx.ModelProto, tensors: Tensors) -> None:
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


def _drop_inputs_with_defaults(skeleton: onnx.ModelProto, tensors: Tensors) -> list[str]:
    """Initializers leave the graph's inputs: their value is what gets compiled.

    IR version 3 demands that every initializer is listed as an input. Later versions read that
    as «a default that callers may override»; those are returned, for the user to be told.
    """
    kept = [value for value in skeleton.graph.input if value.name not in tensors]
    fixed = [value.name for value in skeleton.graph.input if value.name in tensors]
    del skeleton.graph.input[:]
    skeleton.graph.input.extend(kept)
    return fixed if skeleton.ir_version >= 4 else []


def _sort_nodes(skeleton: onnx.ModelProto) -> None:
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


# ---------------------------------------------------------------- onnx's C++ side


def _declare(skeleton: onnx.ModelProto, tensors: Tensors) -> onnx.ModelProto:
    """Small tensors become initializers again, large ones inputs with a type and no data."""
    for name, tensor in tensors.items():
        if nbytes_of(tensor) <= _SKELETON_TENSOR_BYTES:
            small = ir.serde.serialize_tensor(tensor)
            small.name = name
            skeleton.graph.initializer.append(small)
        else:
            skeleton.graph.input.append(
                onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy())
            )
    skeleton.ir_version = max(skeleton.ir_version, 8)
    return skeleton


def _normalise(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Check, inline local functions, raise the opset, infer shapes."""
    opset = next(o.version for o in skeleton.opset_import if o.domain in ("", "ai.onnx"))
    try:
        if not all(v.type.tensor_type.HasField("shape") for v in skeleton.graph.output):
            skeleton = onnx.shape_inference.infer_shapes(skeleton)  # the checker wants them
        onnx.checker.check_model(skeleton)
        if len(skeleton.functions):
            ours = [(f.domain, f.name) for f in skeleton.functions if f.domain == DOMAIN]
            skeleton = onnx.inliner.inline_selected_functions(skeleton, ours, exclude=True)
    except Exception as error:
        raise ModelError(f"not a valid ONNX model: {_one_line(error)}") from None
    if opset < LOWEST_OPSET_AFTER_IMPORT:
        try:
            skeleton = onnx.version_converter.convert_version(skeleton, LOWEST_OPSET_AFTER_IMPORT)
        except Exception as error:
            raise ModelError(
                f"opset {opset} cannot be raised to {LOWEST_OPSET_AFTER_IMPORT}: "
                f"{_one_line(error)}",
                hint=f"export with opset_version={LOWEST_OPSET_AFTER_IMPORT}",
            ) from None
    return _infer_shapes(skeleton)


def _infer_shapes(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes of all values; an operator whose inputs do not fit is an error."""
    # Exporters write approximate shapes of intermediate values; onnx's own are exact.
    del skeleton.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(
            skeleton, check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:
        text = _one_line(error)
    # onnx infers some operators by expanding them, which fails on sound models as well.
    culprit = re.search(r"\(op_type:(\w+)", text)
    if culprit and _is_expanded(culprit[1]):
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    raise ModelError(f"shapes or types do not fit: {text}")


def _is_expanded(op_type: str) -> bool:
    return onnx.defs.has(op_type) and bool(onnx.defs.get_schema(op_type).has_function)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "..."


# ---------------------------------------------------------------- weights back


def _attach(skeleton: onnx.ModelProto, tensors: Tensors, inputs: list[str]) -> ir.Model:
    """The skeleton in onnx_ir's form, with its weights and only its real inputs."""
    try:
        model = ir.serde.deserialize_model(skeleton)
    except Exception as error:
        raise ModelError(f"not a valid ONNX model: {_one_line(error)}") from None
    graph = model.graph
    declared = {value.name: value for value in graph.inputs}
    graph.inputs[:] = [declared[name] for name in inputs]
    for name, tensor in tensors.items():
        value = declared.get(name) or graph.initializers.get(name)
        if value is None:  # small, and dropped because nothing reads it
            continue
        value.const_value = tensor
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        graph.register_initializer(value)
    for node in graph.all_nodes():
        for value in node.outputs:
            _check_size(value)
    for value in graph.inputs:
        _check_size(value)
    return model


def _check_size(value: ir.Value) -> None:
    """Refuse impossible sizes; exporters write -1 where they mean «any»."""
    shape, dtype = value.shape, value.dtype
    if shape is None or dtype is None:
        return
    if any(isinstance(d, int) and d < 0 for d in shape):
        shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in shape])
        value.shape = shape
    size = math.prod(d for d in shape if isinstance(d, int))
    if size * bits_of(dtype) // 8 > _LARGEST_VALUE_BYTES:
        raise ModelError(f"value {value.name!r}: shape {shape} is larger than any machine's memory")

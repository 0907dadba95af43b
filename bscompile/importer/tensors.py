"""One tensor of a message becomes an array, after its claims are checked."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir

from bscompile.errors import ModelError
from bscompile.importer.external_data import map_external, tensor_nbytes
from bscompile.passes.graph import bits_of

_LARGEST_SPARSE_BYTES = 2**31


def read_tensor(tensor: onnx.TensorProto, base: Path | None) -> ir.TensorProtocol:
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


def inline_tensor(tensor: onnx.TensorProto, base: Path | None) -> None:
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


def inline_attributes(node: onnx.NodeProto, base: Path | None) -> None:
    """Do so for every tensor in a node's attributes."""
    for attribute in node.attribute:
        for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
            inline_tensor(tensor, base)
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        if sparse or len(attribute.sparse_tensors):
            raise ModelError(
                f"node {node.name!r}: sparse tensor in an attribute",
                hint="store it as an initializer",
            )


def densify(sparse: onnx.SparseTensorProto, base: Path | None) -> ir.TensorProtocol:
    """A COO initializer as a dense array."""
    name, dims = sparse.values.name, tuple(sparse.dims)
    values = read_tensor(sparse.values, base).numpy()
    indices = read_tensor(sparse.indices, base).numpy()
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

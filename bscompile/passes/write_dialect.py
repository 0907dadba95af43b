"""Last pass: the rewritten model becomes a valid ONNX file that any ONNX runtime opens and runs.

Every dialect node gets its function, equal initializers are shared again, unused ones go, names
are unique, nodes are in order, and onnx's checker agrees.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from bscompile.dialect import attach_functions
from bscompile.errors import StorageError
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import nbytes_of
from bscompile.passes.widen_float16 import mark_storage

_INLINE_BYTES = 2**30  # larger models get their weights in a file of their own


class WriteDialect(GraphPass):
    """Finish the model."""

    def rewrite(self, model: ir.Model) -> bool:
        """Tidy up, attach the functions and check."""
        common.RemoveUnusedNodesPass()(model)
        _make_contiguous(model.graph)
        common.DeduplicateHashedInitializersPass(size_limit=2**62)(model)
        _remove_unused_initializers(model.graph)
        mark_storage(model)
        model.graph.sort()
        count = attach_functions(model)
        common.RemoveUnusedOpsetsPass()(model)
        common.NameFixPass()(model)
        common.CheckerPass()(model)
        self.applied_to("graph", f"{count} functions of the dialect attached")
        return True


def _make_contiguous(graph: ir.Graph) -> None:
    """Folded transposes are views; what compares or saves bytes wants them in order."""
    for name, value in graph.initializers.items():
        if value.const_value is None:
            continue
        array = value.const_value.numpy()
        if not array.flags.c_contiguous:
            dtype = value.const_value.dtype
            value.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=name)


def _remove_unused_initializers(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def save_copy(model: ir.Model, path: Path) -> None:
    """Save the model as it stands, with its functions; the model itself stays as it is.

    It appears only when it is complete, its large tensors in a file beside it before that.

    Raises:
        StorageError: the file cannot be written.
    """
    copy = model.clone()
    attach_functions(copy)
    common.NameFixPass()(copy)  # passes may leave a value unnamed
    nbytes = sum(nbytes_of(value.const_value) for value in copy.graph.initializers.values())
    data = f"{path.name}.data" if nbytes > _INLINE_BYTES else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as staged:
            ir.save(copy, Path(staged) / path.name, external_data=data)
            for name in filter(None, (data, path.name)):
                os.replace(Path(staged) / name, path.with_name(name))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None

"""From an ONNX file to a checked ``onnx_ir.Model`` with shapes; every failure is one clear line.

parse.py      bytes -> message of a known version
skeleton.py   weights aside (tensors.py; external_data.py maps those beside the file)
checks.py     structure, names, NaN       order.py   topological order, cycles
dimensions.py lengths for symbolic dimensions
normalise.py  onnx's checker, inliner, version converter, shape inference on the skeleton
name_dimensions.py  symbolic sizes by what they are; target_shapes.py has the rules
spell_out.py  operators that no target has a kernel for, as functions of simpler ones;
              microsoft_operators.py and microsoft_attention.py have those of onnxruntime
unroll_recurrent.py  LSTM, GRU and RNN of a fixed number of steps
attach.py     the onnx_ir model with its weights again
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from bscompile.errors import ModelError
from bscompile.importer.attach import attach
from bscompile.importer.checks import check_structure, check_values
from bscompile.importer.dimensions import fix_dimensions
from bscompile.importer.normalise import declare, normalise
from bscompile.importer.order import sort_nodes
from bscompile.importer.parse import check_versions, parse
from bscompile.importer.skeleton import drop_inputs_with_defaults, split_ir, split_proto

__all__ = ["FIXED_INPUTS_KEY", "load_model"]

FIXED_INPUTS_KEY = "bscompile.fixed_inputs"  # metadata: inputs whose default was compiled in


def load_model(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    dimensions: Mapping[str, int] | None = None,
) -> ir.Model:
    """Read, check and normalise a model.

    Args:
        source: The path of an .onnx file, or a model in memory (which is left unchanged).
        dimensions: Lengths for symbolic dimensions of the inputs; the others stay symbolic.

    Returns:
        A new model: local functions inlined, opset at least 20, nodes in topological order,
        shapes inferred, initializers no longer among the inputs.

    Raises:
        ModelError: the file or the model is broken, hostile or not supported.
    """
    try:
        return _load(source, dimensions or {})
    except UnicodeDecodeError as error:  # anywhere that a damaged string is looked at
        raise ModelError(
            f"the model holds text that is not UTF-8: {error.object[:20]!r}",
            hint="the file is damaged; export it again",
        ) from None


def _load(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model, dimensions: Mapping[str, int]
) -> ir.Model:
    base: Path | None = None
    if isinstance(source, ir.Model):
        skeleton, tensors = split_ir(source)
    else:
        if isinstance(source, onnx.ModelProto):
            proto = source
        else:
            path = Path(source)
            base, proto = path.parent, parse(path)
        check_versions(proto)
        skeleton, tensors = split_proto(proto, base)
        del proto
    check_versions(skeleton)
    check_structure(skeleton, tensors)
    check_values(skeleton, tensors)
    fixed = drop_inputs_with_defaults(skeleton, tensors)
    fix_dimensions(skeleton, dimensions)
    sort_nodes(skeleton)
    inputs = [value.name for value in skeleton.graph.input]
    skeleton = normalise(declare(skeleton, tensors))
    model = attach(skeleton, tensors, inputs)
    if fixed:
        model.metadata_props[FIXED_INPUTS_KEY] = ",".join(fixed)
    return model

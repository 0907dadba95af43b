"""Give symbolic dimensions a length, for devices that know fixed shapes only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx

from bscompile.errors import ModelError, did_you_mean


def fix_dimensions(skeleton: onnx.ModelProto, lengths: Mapping[str, int]) -> None:
    """Replace dimensions by their lengths, in place, in all inputs and outputs.

    An output whose dimension is an expression of one (``2*batch``, as torch writes it) is left
    open there; shape inference fills it in.

    Args:
        skeleton: The model, with or without its weights.
        lengths: Name of a symbolic dimension -> its length, at least 1.

    Raises:
        ModelError: no input has a dimension of that name.
    """
    if not lengths:
        return
    known = {d.dim_param for d in _dimensions(skeleton.graph.input) if d.dim_param}
    for name in lengths:
        if name not in known:
            raise ModelError(
                f"no input has a symbolic dimension {name!r}",
                did_you_mean(name, known) if known else "all its dimensions are fixed",
            )
    for dimension in _dimensions([*skeleton.graph.input, *skeleton.graph.output]):
        if dimension.dim_param in lengths:
            dimension.dim_value = lengths[dimension.dim_param]
        elif set(re.findall(r"\w+", dimension.dim_param)) & lengths.keys():
            dimension.Clear()


def _dimensions(
    values: Iterator[onnx.ValueInfoProto] | list[onnx.ValueInfoProto],
) -> Iterator[onnx.TensorShapeProto.Dimension]:
    for value in values:
        yield from value.type.tensor_type.shape.dim

"""Inputs to try a model with: sizes for its symbolic axes, values that its graph can take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bscompile.artifact.manifest import TensorSpec
from bscompile.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

#: Operators that hand integers on unchanged, so that what reads them later bounds the input.
_PASS_ON = {
    *("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape"),
    *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
}


def symbols_of(specs: Iterable[TensorSpec]) -> list[str]:
    """The symbolic dimensions in order of appearance, without the unnamed ``?``."""
    names = [dim for spec in specs for dim in spec.shape if isinstance(dim, str) and dim != "?"]
    return list(dict.fromkeys(names))


def typical_lengths(
    specs: Sequence[TensorSpec], chosen: Mapping[str, int], rest: int = 128
) -> dict[str, int]:
    """A length for each symbolic dimension: one sample, ``rest`` along every other axis.

    Args:
        specs: The model's inputs.
        chosen: Lengths that the user gave; they win.
        rest: Length of dimensions that are not the first of an input.

    Raises:
        UsageError: ``chosen`` names a dimension that the model does not have.
    """
    symbols = symbols_of(specs)
    for name, length in chosen.items():
        if name not in symbols:
            raise UsageError(f"no dimension is named {name!r}", did_you_mean(name, symbols))
        if length < 1:
            raise UsageError(f"dimension {name}: at least 1 is wanted, got {length}")
    first = {spec.shape[0] for spec in specs if spec.shape}
    return {name: chosen.get(name, 1 if name in first else rest) for name in symbols}


def make_inputs(
    specs: Iterable[TensorSpec],
    lengths: Mapping[str, int],
    rng: np.random.Generator,
    limits: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Random inputs.

    Args:
        specs: The model's inputs.
        lengths: Symbolic dimension -> length.
        rng: Where the values come from.
        limits: Integer input -> how many values it may take, from 0; 2 where it is not named,
            which suits masks and is inside every table.

    Returns:
        Name -> array: standard normal floats, uniform integers, true three times out of four.
    """
    return {
        spec.name: _values(
            rng,
            tuple(dim if isinstance(dim, int) else lengths.get(dim, 1) for dim in spec.shape),
            np.dtype(spec.dtype),
            (limits or {}).get(spec.name, 2),
        )
        for spec in specs
    }


def _values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any], limit: int
) -> Array:
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    if dtype.kind == "b" or limit <= 2:
        # Mostly ones: a mask that hides everything makes a softmax over nothing.
        return (rng.random(shape) < 0.75).astype(dtype)
    top = min(limit, np.iinfo(dtype).max)
    return rng.integers(0, top, shape).astype(dtype)


def integer_limits(model: onnx.ModelProto) -> dict[str, int]:
    """How many values each integer input may take: the length of the tables that it indexes.

    Args:
        model: With initializers' shapes; their data is not looked at.

    Returns:
        Input -> length of the smallest table; inputs that index nothing are left out.
    """
    lengths = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    limits = {}
    for value in model.graph.input:
        bounds = list(_table_lengths(value.name, readers, lengths))
        if bounds:
            limits[value.name] = min(bounds)
    return limits


def _table_lengths(
    start: str, readers: Mapping[str, list[onnx.NodeProto]], lengths: Mapping[str, list[int]]
) -> Iterable[int]:
    """Lengths of the constant tables that a value indexes, itself or handed on."""
    seen, waiting = {start}, [start]
    while waiting:
        name = waiting.pop()
        for node in readers.get(name, []):
            if node.op_type in {"Gather", "GatherElements"} and node.input[1] == name:
                shape = lengths.get(node.input[0])
                axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                if shape and -len(shape) <= axis < len(shape):
                    yield shape[axis]
            elif node.op_type in _PASS_ON and node.input[0] == name:
                fresh = [output for output in node.output if output not in seen]
                seen.update(fresh)
                waiting += fresh

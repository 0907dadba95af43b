"""Where the features of a group lie in a value, and where a movement of data takes them.

A feature is a run of consecutive entries along one axis: one entry after a layer, h·w entries
after Flatten made [n, c, h, w] into [n, c h w], one head's d entries in [b, s, heads d]. Reshape
keeps the order of entries in memory, so a feature that is one run before is one run after,
provided that an axis starts and ends where the features do:

    [.., size run, tail]  ->  [.., size run', tail']    with run tail = run' tail'

Where an axis before the features is merged into theirs, as torch does with batch and heads, they
lie there several times over: [.., outer size run', tail'].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.passes.graph import is_op

Index = npt.NDArray[np.int64]
Dims = ir.Shape | Sequence[int | ir.SymbolicDim]

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Layout:
    """The place of features in a value.

    Attributes:
        axis: Their axis from the end: -1 after a matmul, -3 after a convolution.
        run: Entries of that axis per feature.
        cells: Where the features are cut into cells such as heads, the axis that counts these;
            the other one then counts features within a cell. Only for groups that keep all
            features, see feature_orders.py.
        outer: How many times over all features lie along the axis.
    """

    axis: int
    run: int = 1
    cells: int | None = None
    outer: int = 1

    def length(self, features: int) -> int:
        """How long the axis is for so many features."""
        return self.outer * features * self.run

    def entries(self, features: Index, size: int = 0) -> Index:
        """The positions along the axis that features, of ``size``, take up, in their order."""
        once = (features[:, None] * self.run + np.arange(self.run)).reshape(-1)
        return (np.arange(self.outer)[:, None] * (size * self.run) + once).reshape(-1)


def after_reshape(old: Dims, new: Dims, layout: Layout, size: int) -> Layout | int | None:
    """Where ``size`` features lie after a value of shape ``old`` was given the shape ``new``.

    Returns:
        Their layout; or how many of them must go together to have one; or None.
    """
    tail = _product(old[len(old) + layout.axis + 1 :])
    if tail is None:
        return None
    block = layout.run * tail  # entries of a feature, one after the other
    inner = 1
    for axis in range(-1, -len(new) - 1, -1):
        length = new[axis]
        if not isinstance(length, int):
            return None
        if length and length * inner % (size * block) == 0:
            if block % inner == 0:
                return Layout(axis, block // inner, None, length * inner // (size * block))
            return inner // block if inner % block == 0 else None
        inner *= length
    return None


def after_transpose(node: ir.Node, layout: Layout, rank: int, backwards: bool) -> Layout:
    """Where features lie on the other side of a Transpose."""
    perm = list(node.attributes.get_ints("perm", range(rank - 1, -1, -1)))

    def moved(axis: int) -> int:
        return (perm[rank + axis] if backwards else perm.index(rank + axis)) - rank

    cells = None if layout.cells is None else moved(layout.cells)
    return replace(layout, axis=moved(layout.axis), cells=cells)


def is_reshape(node: ir.Node) -> bool:
    """Whether a node gives its input another shape and keeps the order of its entries."""
    return is_op(node, *RESHAPES)


def _product(sizes: Dims) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None

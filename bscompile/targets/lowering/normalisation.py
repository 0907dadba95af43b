"""Normalisation of an image's channels, each alone or in groups.

Relax's group_norm stands for both; a target writes it as one kernel, or spelled out. TVM's own
converters take the mean of the squares less the square of the mean, which loses all digits where
values lie far from zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import relax, tirx

from bscompile.targets.lowering.shape_converters import shape_of

if TYPE_CHECKING:
    from bscompile.targets.lowering.importer import NodeView


def convert(view: NodeView) -> Any:
    """InstanceNormalization or GroupNormalization of x [b, c, ...]."""
    x = view.expr(0)
    return normalised(view, x, channel_axis=1, axes=list(range(2, len(shape_of(x)))))


def normalised(view: NodeView, x: Any, *, channel_axis: int, axes: list[int]) -> Any:
    """What the node makes of x, whose channels and positions lie along the given axes.

    Raises:
        ValueError: the number of channels is symbolic, or the groups do not divide it.
    """
    bb, op = view.bb, relax.op
    size = shape_of(x)[channel_axis]
    channels = int(size.value) if isinstance(size, tirx.IntImm) else 0
    if not channels:
        raise ValueError("the number of channels must be known while compiling")
    groups = int(view.attributes.get("num_groups", channels))
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot be cut into {groups} groups")
    dtype = str(x.ty.dtype)
    tensors = [x, view.expr(1), view.expr(2)]
    if dtype in ("float16", "bfloat16"):
        tensors = [bb.emit(op.astype(tensor, "float32")) for tensor in tensors]
    y = op.nn.group_norm(
        *tensors,
        num_groups=groups,
        channel_axis=channel_axis,
        axes=axes,
        epsilon=float(view.attributes.get("epsilon", 1e-5)),
    )
    return y if str(tensors[0].ty.dtype) == dtype else op.astype(bb.emit(y), dtype)

"""Convolutions: a kernel that reads the image itself where there is one, windows elsewhere.

W is [n, c·kh·kw], as ONNX flattens it. Images are [b, h, w, c] here: see channels_last.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from bscompile.dialect import ConvGeometry, LinearOp, read_node
from bscompile.targets.base import Image
from bscompile.targets.lowering import channels_last
from bscompile.targets.lowering.linear import epilogue_tensors, kernel_call
from bscompile.targets.lowering.shape_converters import product, reshaped, shape_of

if TYPE_CHECKING:
    from bscompile.targets.lowering.importer import NodeView

#: Channels up to which reading planes apart costs less than laying them side by side first.
_FEW_CHANNELS = 8


def convert_conv(view: NodeView) -> Any:
    """Y [b, n, oh, ow] from x [b, c, h, w]: a matmul over the windows, m = b·oh·ow."""
    op = read_node(view.node)
    conv = op.conv
    assert conv is not None
    x = view.expr(0)
    batch, _, height, width = shape_of(x)
    n, k = op.shape
    oh, ow = conv.output_size(height, width)
    m = product([batch, oh, ow])
    tensors = []
    for step, index in epilogue_tensors(op, view.node):
        if step == "bias":
            tensors.append(view.expr(index))
        else:
            tensors.append(reshaped(view.bb, channels_last.image(view, index), [m, n]))
    y = None if conv.is_pointwise else _from_image(view, op, m, tensors)
    if y is None:
        if conv.is_pointwise:
            rows = reshaped(view.bb, channels_last.image(view, 0), [m, k])
        else:
            rows = reshaped(view.bb, _windows(view, conv), [m, k])
        call = kernel_call(view, op, m)
        assert call is not None  # only kernels that read images may be missing
        y = call(rows, tensors)
    y = reshaped(view.bb, y, [batch, oh, ow, tirx.const(n, "int64")])
    return channels_last.result(view, y)


def _from_image(view: NodeView, op: LinearOp, m: Any, tensors: list[Any]) -> Any:
    """Y [m, n] by a kernel that reads the image; None where there is none, or no known size."""
    conv = op.conv
    assert conv is not None
    batch, *sizes = shape_of(view.expr(0))
    if not all(isinstance(size, tirx.IntImm) for size in sizes):
        return None
    channels, height, width = (int(size.value) for size in sizes)
    few = channels <= _FEW_CHANNELS and not channels_last.is_last(view, 0)
    for channels_first in (True, False) if few else (False,):
        image = Image(conv, height, width, channels, channels_first)
        call = kernel_call(view, op, m, image)
        if call is not None:
            x = view.expr(0) if channels_first else channels_last.image(view, 0)
            return call(reshaped(view.bb, x, [batch, height * width * channels]), tensors)
    return None


def _windows(view: NodeView, conv: ConvGeometry) -> Any:
    """What each output position reads, [b, oh, ow, c, kh, kw]."""
    if channels_last.is_last(view, 0):
        x, order = channels_last.image(view, 0), (0, 3, 1, 2)
    else:
        x, order = view.expr(0), (0, 1, 2, 3)
    return view.bb.emit_te(
        lambda image: _im2col(image, conv, order), x, primfunc_name_hint="im2col"
    )


def _im2col(x: te.Tensor, conv: ConvGeometry, order: tuple[int, int, int, int]) -> te.Tensor:
    """An image -> [b, oh, ow, c, kh, kw]; ``order`` says where x keeps b, c, h and w."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilations
    top, left, bottom, right = conv.pads
    batch, channels, height, width = (x.shape[axis] for axis in order)
    oh, ow = conv.output_size(height, width)

    def element(b: Any, i: Any, j: Any, c: Any, p: Any, q: Any) -> Any:
        row, column = i * sh + p * dh - top, j * sw + q * dw - left
        at: list[Any] = [None] * 4
        for axis, index in zip(order, (b, c, row, column), strict=True):
            at[axis] = index
        tests = []
        if top:
            tests.append(row >= 0)
        if bottom:
            tests.append(row < height)
        if left:
            tests.append(column >= 0)
        if right:
            tests.append(column < width)
        if not tests:
            return x[tuple(at)]
        return tirx.if_then_else(tirx.all(*tests), x[tuple(at)], tirx.const(0, x.dtype))

    return te.compute((batch, oh, ow, channels, kh, kw), element, name="im2col")


def convert_grouped(view: NodeView) -> Any:
    """What the passes left to ONNX's Conv: groups, computed kernels, other than two axes.

    A depthwise convolution of two axes with a constant kernel is emitted channels last, taps
    [kh, kw, c, 1]; targets have their own code for that. All others go to TVM.
    """
    from bscompile.targets.lowering.converters import from_tvm

    kernel = view.node.inputs[1]
    assert kernel is not None  # ONNX's checker has seen it
    tensor = ir.convenience.get_const_tensor(kernel)
    conv = None if tensor is None else _depthwise(view, tuple(tensor.shape.numpy()))
    if tensor is None or conv is None:
        return from_tvm("Conv")(view)
    taps = np.ascontiguousarray(tensor.numpy().transpose(2, 3, 0, 1))
    y = relax.op.nn.conv2d(
        channels_last.image(view, 0),
        view.importer.parameter(f"{kernel.name}.taps", taps),
        strides=conv.strides,
        padding=conv.pads,
        dilation=conv.dilations,
        groups=taps.shape[2],
        data_layout="NHWC",
        kernel_layout="HWOI",
    )
    if view.has(2):
        y = relax.op.add(view.bb.emit(y), view.expr(2))
    return channels_last.result(view, y)


def _depthwise(view: NodeView, kernel: tuple[int, ...]) -> ConvGeometry | None:
    """The geometry of a depthwise convolution with one output for each channel, else None."""
    attributes = view.attributes
    if len(kernel) != 4 or kernel[1] != 1 or attributes.get("group", 1) != kernel[0]:
        return None
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    strides, dilations = attributes.get("strides", (1, 1)), attributes.get("dilations", (1, 1))
    pads = (top, left, bottom, right)
    return ConvGeometry((kernel[2], kernel[3]), tuple(strides), pads, tuple(dilations))

"""Depthwise convolutions, with bias and activation, become calls of generated functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bscompile.dialect import ConvGeometry
from bscompile.targets.cpu import elementwise
from bscompile.targets.cpu.code import depthwise
from bscompile.targets.cpu.graph import Graph, Replacement, is_float32, replacing_pass, sizes

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

#: Multiply-adds below which a second thread costs more than it saves.
PARALLEL_WORK = 200_000


def FuseDepthwise(hardware: HardwareSpec) -> Any:  # noqa: N802  # a pass, named like TVM's
    """The pass that replaces depthwise convolutions of images with channels last."""

    def is_depthwise(graph: Graph, var: Any) -> bool:
        return _biased_convolution(graph, var) is not None

    def find(graph: Graph, var: Any) -> Replacement | None:
        after = elementwise.region(graph, var, lambda value: is_depthwise(graph, value))
        if after is None:
            return None
        base, finish = after
        found = _biased_convolution(graph, base)
        assert found is not None
        call, bias = found
        x, taps = call.args
        if not is_float32(x) or not is_float32(taps):
            return None
        attrs = call.attrs
        conv = ConvGeometry(
            (int(taps.ty.shape.values[0]), int(taps.ty.shape.values[1])),
            (int(attrs.strides[0]), int(attrs.strides[1])),
            _pads(attrs.padding),
            (int(attrs.dilation[0]), int(attrs.dilation[1])),
        )
        shape, result = sizes(x), sizes(var)
        if any(isinstance(s, str) for s in (*shape[1:], *result[1:])):
            return None
        work = conv.kernel[0] * conv.kernel[1]
        for size in result:
            work *= size if isinstance(size, int) else 8
        function = depthwise.generate(
            shape,
            result,
            conv,
            biased=bias is not None,
            finish=finish,
            lanes=hardware.vector_bytes // 4,
            tasks=hardware.cores if work >= PARALLEL_WORK else 1,
        )
        return Replacement("depthwise", function, (x, taps, *([bias] if bias is not None else [])))

    return replacing_pass("bscompile.FuseDepthwise", find)


def _biased_convolution(graph: Graph, var: Any) -> tuple[Any, Any] | None:
    """(the depthwise convolution, its bias or None) that ``var`` is the result of."""
    bias, call = None, graph.call(var, "relax.add")
    if call is not None and call.args[1].ty.ndim == 1 and graph.uses[call.args[0]] == 1:
        bias, var = call.args[1], call.args[0]
    call = graph.call(var, "relax.nn.conv2d")
    return (call, bias) if call is not None and _is_depthwise(call) else None


def _is_depthwise(call: Any) -> bool:
    """As lowering writes them: one output for each channel, taps [kh, kw, c, 1]."""
    attrs = call.attrs
    if attrs.data_layout != "NHWC" or attrs.kernel_layout != "HWOI":
        return False
    taps = call.args[1].ty.shape.values
    return int(attrs.groups) == int(taps[2]) and int(taps[3]) == 1


def _pads(padding: Any) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of what Relax writes in one, two or four numbers."""
    numbers = [int(p) for p in padding]
    top, left, bottom, right = numbers * (4 // len(numbers))
    return top, left, bottom, right

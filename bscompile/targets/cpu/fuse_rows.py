"""Softmax, layer and RMS normalisation of rows become calls of generated functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bscompile.targets.cpu.code import rows
from bscompile.targets.cpu.graph import Graph, Replacement, is_float32, replacing_pass, sizes

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

MAX_RANK = 8


def FuseRows(hardware: HardwareSpec) -> Any:  # noqa: N802  # a pass, named like TVM's
    """The pass that replaces row operators on float32; others keep TVM's loops."""
    machine = {"lanes": hardware.vector_bytes // 4, "tasks": hardware.cores}

    def find(graph: Graph, var: Any) -> Replacement | None:
        call = graph.call(var, "relax.nn.softmax", "relax.nn.layer_norm", "relax.nn.rms_norm")
        if call is None or not is_float32(call.args[0]):
            return None
        x = call.args[0]
        rank = x.ty.ndim
        if not 1 <= rank <= MAX_RANK:
            return None
        if call.op.name == "relax.nn.softmax":
            if int(call.attrs.axis) not in (-1, rank - 1):
                return None
            return Replacement("softmax", rows.softmax(sizes(x), **machine), (x,))
        axes = [int(a) for a in call.attrs.axes]
        if axes not in ([-1], [rank - 1]):
            return None
        centred = call.op.name == "relax.nn.layer_norm"
        if centred and not (call.attrs.center and call.attrs.scale):
            return None
        function = rows.normalise(
            sizes(x),
            centred=centred,
            scaled=True,
            shifted=centred,
            epsilon=float(call.attrs.epsilon),
            **machine,
        )
        return Replacement("normalise", function, tuple(call.args))

    return replacing_pass("bscompile.FuseRows", find)

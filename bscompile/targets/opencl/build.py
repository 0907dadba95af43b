"""From a lowered module to OpenCL C, its launches and a static program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bscompile.devices import opencl as opencl_device
from bscompile.errors import TargetError

if TYPE_CHECKING:
    from bscompile.targets.base import TargetContext
    from bscompile.targets.lowering import Lowered

#: The artifact member that holds the code.
KERNELS = "code/kernels.cl"


def prepare(lowered: Lowered, context: TargetContext) -> Lowered:
    """Plan the model's memory and schedule what no template made.

    Raises:
        ModelError: a length is symbolic, or an operation has no code for threads.
    """
    from bscompile.targets.gpu import build as gpu
    from bscompile.targets.opencl.hardware import tvm_target

    return gpu.prepare(lowered, context, tvm_target(context.hardware))


def build(planned: Lowered, context: TargetContext) -> dict[str, bytes]:
    """Generate OpenCL C.

    Returns:
        ``code/program.json``, ``code/launches.json`` and ``code/kernels.cl``.

    Raises:
        ModelError: TVM cannot generate code for an operation of the model.
        TargetError: an input or output has a dtype that the device lacks.
    """
    from bscompile.targets.gpu import build as gpu
    from bscompile.targets.opencl.hardware import tvm_target

    _check_dtypes(planned, context.variant)
    members, code = gpu.build(planned, context, tvm_target(context.hardware))
    return {**members, KERNELS: "\n".join(code.sources.values()).encode()}


def _check_dtypes(planned: Lowered, variant: str) -> None:
    """Refuse early what the device's compiler would refuse with a page of text."""
    here = frozenset[str]() if variant else opencl_device.limits().extensions
    for spec in (*planned.inputs, *planned.outputs):
        if dtype := opencl_device.lacking([spec.dtype], here):
            device = "some OpenCL device" if variant else opencl_device.limits().name
            raise TargetError(
                f"{spec.name} is {dtype}, and {device} has no {opencl_device.EXTENSIONS[dtype]}",
                "convert the model to float32",
            )

"""From a lowered module to OpenCL C, its launches and a static program."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """
    from bscompile.targets.gpu import build as gpu
    from bscompile.targets.opencl.hardware import tvm_target

    members, code = gpu.build(planned, context, tvm_target(context.hardware))
    return {**members, KERNELS: "\n".join(code.sources.values()).encode()}

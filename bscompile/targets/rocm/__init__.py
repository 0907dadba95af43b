"""AMD GPUs, code generation only: code objects and launches, run by nothing here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bscompile.errors import TargetError
from bscompile.targets.base import Availability, HardwareSpec, Target
from bscompile.targets.gpu.kernels import TEMPLATES
from bscompile.targets.gpu.unseen import unseen_gpu
from bscompile.targets.rocm.link import find_linker

if TYPE_CHECKING:
    from bscompile.targets.base import TargetContext
    from bscompile.targets.lowering import Lowered

__all__ = ["TARGET"]

FOLDER = "code/kernels/"  # one file for each entry point

#: Variant -> (name, compute units, GB/s), by data sheet; the first is the default.
_GPUS = {
    "gfx90a": ("AMD Instinct MI250X, one die", 110, 1600.0),
    "gfx942": ("AMD Instinct MI300X", 304, 5300.0),
    "gfx1100": ("AMD Radeon RX 7900 XTX", 96, 960.0),
}


def detect() -> Availability:
    """It compiles where a linker is, and runs nowhere yet."""
    detail = "code generation only: no artifact of it was ever run"
    try:
        find_linker()
    except TargetError as error:
        return Availability(False, False, detail, install=str(error.hint))
    return Availability(compiles=True, runs=False, detail=detail)


def hardware(variant: str = "", threads: int | None = None) -> HardwareSpec:
    """A GPU by the name of its instruction set; ``threads`` is ignored."""
    isa = variant or next(iter(_GPUS))
    name, processors, gbps = _GPUS[isa]
    return unseen_gpu(name, isa, processors, gbps, 64 << 10)


def prepare(lowered: Lowered, context: TargetContext) -> Lowered:
    """Plan the model's memory and schedule what no template made."""
    from bscompile.targets.gpu import build as gpu

    return gpu.prepare(lowered, context, _tvm_target(context.hardware))


def build(planned: Lowered, context: TargetContext) -> dict[str, bytes]:
    """The program, its launches and one code object for each entry point.

    Raises:
        TargetError: no linker is installed, or it fails.
    """
    from bscompile.targets.gpu import build as gpu
    from bscompile.targets.rocm.link import linked_objects

    with linked_objects() as objects:
        members, code = gpu.build(planned, context, _tvm_target(context.hardware))
        found = zip(code.modules, objects, strict=True)
        return {**members, **{f"{FOLDER}{entry}.hsaco": content for entry, content in found}}


def _tvm_target(spec: HardwareSpec) -> Any:
    import tvm

    return tvm.target.Target(
        {
            "kind": "rocm",
            "mcpu": spec.isa,
            "max_num_threads": spec.group_threads,
            "max_threads_per_block": spec.group_threads,
            "max_shared_memory_per_block": spec.group_bytes,
        }
    )


TARGET = Target(
    name="rocm",
    description="AMD GPUs; fixed shapes; code generation only",
    variants=("", *_GPUS),
    detect=detect,
    hardware=hardware,
    templates=TEMPLATES,
    prepare=prepare,
    build=build,
    loader="rocm",
)

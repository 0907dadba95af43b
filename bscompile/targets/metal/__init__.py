"""Apple GPUs, code generation only: Metal source and launches, run by nothing here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bscompile.targets.base import Availability, HardwareSpec, Target
from bscompile.targets.gpu.kernels import TEMPLATES
from bscompile.targets.gpu.unseen import unseen_gpu

if TYPE_CHECKING:
    from bscompile.targets.base import TargetContext
    from bscompile.targets.lowering import Lowered

__all__ = ["TARGET"]

FOLDER = "code/kernels/"  # one file for each entry point


def detect() -> Availability:
    """It compiles anywhere and runs nowhere yet."""
    return Availability(
        compiles=True, runs=False, detail="code generation only: no artifact of it was ever run"
    )


def hardware(variant: str = "", threads: int | None = None) -> HardwareSpec:
    """Any Apple GPU; ``threads`` is ignored."""
    return unseen_gpu("any Apple GPU", "metal", 8, 100.0, 32 << 10)


def prepare(lowered: Lowered, context: TargetContext) -> Lowered:
    """Plan the model's memory and schedule what no template made."""
    from bscompile.targets.gpu import build as gpu

    return gpu.prepare(lowered, context, _tvm_target(context.hardware))


def build(planned: Lowered, context: TargetContext) -> dict[str, bytes]:
    """The program, its launches and one Metal source for each entry point."""
    from bscompile.targets.gpu import build as gpu

    members, code = gpu.build(planned, context, _tvm_target(context.hardware))
    sources = {f"{FOLDER}{entry}.metal": text.encode() for entry, text in code.sources.items()}
    return {**members, **sources}


def _tvm_target(spec: HardwareSpec) -> Any:
    import tvm

    return tvm.target.Target({"kind": "metal", "max_num_threads": spec.group_threads})


TARGET = Target(
    name="metal",
    description="Apple GPUs; fixed shapes; code generation only",
    variants=("",),
    detect=detect,
    hardware=hardware,
    templates=TEMPLATES,
    prepare=prepare,
    build=build,
    loader="metal",
)

"""From a lowered module to a program, its launches and WGSL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bscompile.shaders import MEMBER as KERNELS
from bscompile.shaders import join_shaders
from bscompile.targets.gpu import build as gpu
from bscompile.targets.webgpu.hardware import tvm_target

if TYPE_CHECKING:
    from bscompile.targets.base import TargetContext
    from bscompile.targets.lowering import Lowered


def prepare(lowered: Lowered, context: TargetContext) -> Lowered:
    """Plan the model as a static program."""
    return gpu.prepare(lowered, context, tvm_target(context.hardware))


def build(planned: Lowered, context: TargetContext) -> dict[str, bytes]:
    """The members that the loaders read."""
    members, code = gpu.build(planned, context, tvm_target(context.hardware))
    shaders = {entry: _without_heading(source) for entry, source in code.sources.items()}
    return {**members, KERNELS: join_shaders(shaders).encode()}


def _without_heading(source: str) -> str:
    """WGSL without the comments that TVM begins it with."""
    lines = source.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("//"))
    return "".join(lines[first:])

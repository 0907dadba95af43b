"""From a lowered module to a program, its launches and WGSL."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bscompile.artifact.shaders import MEMBER as KERNELS
from bscompile.artifact.shaders import join_shaders
from bscompile.targets.webgpu.hardware import tvm_target

if TYPE_CHECKING:
    from bscompile.artifact.program import Program
    from bscompile.targets.base import TargetContext
    from bscompile.targets.lowering import Lowered


def prepare(lowered: Lowered, context: TargetContext) -> Lowered:
    """Plan the model's memory and schedule what no template made.

    Raises:
        ModelError: a length is symbolic, an operation has no code for threads, or a weight holds
            numbers that WebGPU lacks.
    """
    from bscompile.targets.gpu import build as gpu
    from bscompile.targets.webgpu.words import narrowed

    planned = gpu.prepare(lowered, context, tvm_target(context.hardware))
    params = tuple((name, narrowed(name, array)) for name, array in planned.params)
    return replace(planned, params=params)


def build(planned: Lowered, context: TargetContext) -> dict[str, bytes]:
    """Generate WGSL.

    Returns:
        The program, its launches and code/kernels.wgsl.

    Raises:
        ModelError: TVM cannot generate code for one of the kernels.
    """
    from bscompile.targets.gpu import build as gpu

    members, code = gpu.build(planned, context, tvm_target(context.hardware), _fit)
    shaders = {entry: _without_heading(source) for entry, source in code.sources.items()}
    return {**members, KERNELS: join_shaders(shaders).encode()}


def _fit(program: Program, kernels: dict[str, Any]) -> tuple[Program, dict[str, Any]]:
    from bscompile.targets.webgpu.words import fit_kernel, fit_program

    return fit_program(program), {name: fit_kernel(func) for name, func in kernels.items()}


def _without_heading(source: str) -> str:
    """WGSL without the comments that TVM begins it with."""
    lines = source.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("//"))
    return "".join(lines[first:])

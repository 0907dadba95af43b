"""What identifies a layer to the tuner: its pattern, the machine and the code that is generated."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from bscompile.dialect import LinearOp, Weight
from bscompile.dialect.precision import Precision
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets import TARGETS
from bscompile.targets.base import HardwareSpec, Target, TargetContext, problem_of
from bscompile.tuning.record import TuningKey

_SOURCES = {".py", ".sv", ".cc"}  # of kernels, and of the array that is simulated
_PREFIXES = ((1 << 20, "M"), (1 << 10, "K"))


def key_of(op: LinearOp, rows: int | None, dtype: Precision, context: TargetContext) -> TuningKey:
    """The key of a layer.

    Args:
        op: The layer as it was recognised.
        rows: Rows of x; None when symbolic.
        dtype: What the weight is to be multiplied in.
        context: The target to run on.
    """
    problem = problem_of(op, rows, dtype, context.typical_rows)
    return TuningKey(
        # The rows to plan for are part of the key where the model leaves them open, only there.
        problem=replace(problem, typical_m=problem.rows),
        pattern=pattern_digest(op.weight),
        target=context.target.name,
        isa=context.hardware.isa,
        hardware=_measured_on(context),
        code=code_version(context.target),
    )


def _measured_on(context: TargetContext) -> str:
    """The machine compiled for, and the device measured on where that is not named so."""
    name = hardware_name(context.hardware)
    device = context.target.measured_on() if context.target.measured_on else ""
    return name if device in name else f"{name}, {device}"


def pattern_digest(weight: Weight) -> str:
    """Equal for weights of one form and shape that are zero in the same blocks."""
    digest = hashlib.blake2b(f"{type(weight).__name__} {weight.shape}".encode(), digest_size=16)
    arrays: tuple[Any, ...] = ()
    if isinstance(weight, BlockSparseMatrix):
        arrays = (weight.indices, weight.indptr)
    elif isinstance(weight, KroneckerSum):
        arrays = (np.packbits(weight.support),)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hardware_name(hardware: HardwareSpec) -> str:
    """The machine as exactly as its spec tells, such as ``EPYC 9R14, 2 threads, caches 32K 1M``."""
    caches = " ".join(_bytes(size) for size in hardware.cache_bytes)
    return f"{hardware.name}, {hardware.cores} threads, caches {caches}"


def _bytes(size: int) -> str:
    for unit, letter in _PREFIXES:
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def code_version(target: Target) -> str:
    """Changes whenever the kernels that a target generates may change.

    A digest of TVM's version and of every source in the target's folder and in the folders of its
    templates, which targets share.
    """
    modules = (import_module(type(template).__module__) for template in target.templates)
    packages = {str(module.__package__) for module in modules}
    return _digest(tuple(sorted(packages | {"bscompile.targets.kernels", TARGETS[target.name]})))


@cache
def _digest(packages: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(metadata.version("apache-tvm").encode(), digest_size=8)
    for package in packages:
        file = import_module(package).__file__
        assert file is not None
        folder = Path(file).parent
        for path in sorted(p for p in folder.rglob("*") if p.suffix in _SOURCES):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()

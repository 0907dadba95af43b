"""One kernel out of several that do the same for different numbers of rows.

    if m <= limit of the first: the first's statements, else if m <= limit of the second: ...

Packed weights that are equal in every number are one argument, whichever kernels read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tvm.script.ir_builder import tirx as T

from bscompile.targets.base import Array, Kernel
from bscompile.targets.kernels.code.emit import Arguments, Statements


def join(kernels: Sequence[Kernel], limits: Sequence[int]) -> Kernel:
    """The kernel that runs ``kernels[i]`` for at most ``limits[i]`` rows, the last one for more.

    Args:
        kernels: Of one layer with symbolic rows, from emit.generate, for fewest rows first.
        limits: Of all but the last, rising.

    Raises:
        ValueError: they do not take x in the same dtype and shape.
    """
    recipes = [kernel.code for kernel in kernels]
    first = recipes[0]
    if any(kernel.x_dtype != kernels[0].x_dtype for kernel in kernels) or any(
        not isinstance(recipe, Statements) or recipe.x_shape != first.x_shape for recipe in recipes
    ):
        raise ValueError("the kernels do not take x alike")
    operands: list[tuple[str, Array]] = []
    places = [[_place(operands, operand) for operand in kernel.operands] for kernel in kernels]

    def body(args: Arguments) -> None:
        for which, recipe in enumerate(recipes):
            least = limits[which - 1] + 1 if which else 0
            most = limits[which] if which < len(limits) else None
            mine = args.m >= least
            if most is not None:
                mine = T.And(mine, args.m <= most)
            # A loop of one step or none: TVM relates every access to the conditions around it,
            # which takes seconds for nested ones.
            with T.serial(0, T.cast(mine, "int64")):
                own = tuple(args.operands[place] for place in places[which])
                recipe.body(replace(args, operands=own, least=least, most=most))

    return Kernel(
        Statements(first.name, first.problem, operands, body, first.x_shape),
        tuple(operands),
        kernels[0].x_dtype,
    )


def _place(operands: list[tuple[str, Array]], wanted: tuple[str, Array]) -> int:
    """Where an array is among the operands; it is added where it is new."""
    suffix, array = wanted
    for place, (_, known) in enumerate(operands):
        alike = known.dtype == array.dtype and known.shape == array.shape
        if alike and np.array_equal(known, array):
            return place
    operands.append((suffix, array))
    return len(operands) - 1

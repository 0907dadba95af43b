"""Products of two computed matrices become calls of the generated function."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bscompile.targets.cpu.code import matmul
from bscompile.targets.cpu.graph import Graph, Replacement, is_float32, operand, replacing_pass

if TYPE_CHECKING:
    from bscompile.targets.base import HardwareSpec

#: Multiply-adds below which a second thread costs more than it saves.
PARALLEL_WORK = 1 << 16


def FuseMatmul(hardware: HardwareSpec) -> Any:  # noqa: N802  # a pass, named like TVM's
    """The pass that replaces matmuls of float32 tensors with two axes or more."""

    def find(graph: Graph, var: Any) -> Replacement | None:
        call = graph.call(var, "relax.matmul")
        if call is None or not all(is_float32(e) for e in (var, *call.args)):
            return None
        left, right = call.args
        ranks = [e.ty.ndim for e in (left, right)]
        if min(ranks) < 2 or max(ranks) > len(matmul.LEADING) + 2:
            return None
        letters = matmul.LEADING[: max(ranks) - 2]
        turned, perm = graph.through_transposes(left)
        a = operand("a", turned, letters[len(letters) - ranks[0] + 2 :] + "ik", perm)
        b = operand("b", right, letters[len(letters) - ranks[1] + 2 :] + "kj")
        out = operand("out", var, letters + "ij")
        for source in (a.tensor, b.tensor):
            for axis in set(source.axes) & set(letters):
                if source.size(axis) not in (1, out.tensor.size(axis)):
                    return None
        if a.tensor.size("k") != b.tensor.size("k"):
            return None
        sizes = (*out.tensor.sizes, a.tensor.size("k"))
        work = math.prod(s if isinstance(s, int) else 128 for s in sizes)
        function = matmul.generate(
            a.tensor,
            b.tensor,
            out.tensor,
            lanes=hardware.vector_bytes // 4,
            tasks=hardware.cores if work >= PARALLEL_WORK else 1,
        )
        return Replacement("matmul", function, (a.expr, b.expr))

    return replacing_pass("bscompile.FuseMatmul", find)

"""Schedules for what no template made: TVM's rules for GPUs, the first whose result fits wins."""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight import gpu

from bscompile.errors import ModelError

#: Tried in order; the last takes everything made of blocks.
RULES = (gpu.Matmul, gpu.Reduction, gpu.GeneralReduction, gpu.Transpose, gpu.Fallback)


def schedule(func: Any, target: Any) -> Any:
    """Bind every loop nest of a function to groups and threads.

    Args:
        func: A tirx.PrimFunc of loop nests.
        target: tvm.target.Target of a GPU-like kind; its limits hold.

    Raises:
        ModelError: the function is no loop nest that can be run by threads.
    """
    for rule in RULES:
        try:
            scheduled = rule().apply(func, target, False)
        except Exception:  # each finds out in its own way that it cannot
            continue
        if scheduled is not None:
            result = scheduled.mod["main"]
            if _fits(result, target) and _is_bound(result):
                return result.with_attrs(func.attrs) if func.attrs else result
    name = func.attrs.get("global_symbol", "of the model")
    raise ModelError(f"the function {name} cannot be run by the threads of {target.kind.name}")


def _fits(func: Any, target: Any) -> bool:
    allocated = s_tir.analysis.calculate_allocated_bytes(func)
    limit = int(target.attrs.get("max_shared_memory_per_block", 16384))
    return all(int(scopes.get("shared", 0)) <= limit for scopes in map(dict, allocated.values()))


def _is_bound(func: Any) -> bool:
    """Whether every nest begins with a loop over threads: some rules schedule one nest of many."""
    body = func.body.block.body
    nests = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    return all(isinstance(nest, tirx.For) and nest.thread_binding is not None for nest in nests)

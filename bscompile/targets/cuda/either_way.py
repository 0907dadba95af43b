"""Dense layers that run on the user's own cuBLAS where a model runs: calls that may go either way.

Whether it is there, and faster, is known only on that machine. So a call of a dense kernel that
reads W as it lies becomes one of a function that the runtime supplies (bscompile/runtime/dense.py),
with the same arguments. It calls the kernel, or cuBLAS and then the layer's epilogue as a launch
of its own, which is added here.
"""

from __future__ import annotations

import json
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from bscompile.artifact.dense_layers import PREFIX
from bscompile.dialect import TENSOR_STEPS
from bscompile.targets.base import Problem
from bscompile.targets.cuda.kernels.code import epilogue
from bscompile.targets.cuda.kernels.code.signature import PLAIN

#: The module's attribute that lists them, as the artifact's member does: see ``listed``.
LISTED = "bscompile.dense"


@tvm.transform.module_pass(opt_level=0, name="bscompile.EitherWay")
class EitherWay:
    """The pass; it comes after fusion, since it is kernels' names that are written down."""

    def transform_module(self, module: tvm.IRModule, _: Any) -> tvm.IRModule:
        """Replace the calls and add the epilogues."""
        plain = {
            var: func
            for var, func in module.functions_items()
            if isinstance(func, tirx.PrimFunc) and PLAIN in func.attrs
        }
        rewriter = _Rewriter(module, plain)
        for var, func in module.functions_items():
            if isinstance(func, relax.Function):
                rewriter.builder_.update_func(var, rewriter.visit_expr(func))
        module = rewriter.builder_.get()
        layers = {}
        for var, problem in rewriter.problems.items():
            name, finish = var.name_hint, ""
            if problem.epilogue:
                finish = f"{name}_epilogue"
                made = epilogue.kernel(problem).with_attr("tirx.is_scheduled", True)
                module[finish] = made.with_attr("global_symbol", finish)
            tensors = sum(step in TENSOR_STEPS for step in problem.epilogue)
            layers[name] = {"epilogue": finish, "tensors": tensors}
        return module.with_attr(LISTED, json.dumps(layers))


def listed(module: tvm.IRModule) -> bytes:
    """The artifact's member: kernel -> its epilogue's name, and how many tensors that takes."""
    return str(module.attrs[LISTED]).encode()


@mutator
class _Rewriter(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, plain: dict[Any, Any]) -> None:
        super().__init__(module)
        self.plain = plain
        self.problems: dict[Any, Problem] = {}

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if call.op != tvm.ir.Op.get("relax.call_tir") or call.args[0] not in self.plain:
            return call
        kernel, tensors = call.args[:2]
        self.problems[kernel] = _problem(
            tensors.fields[0].ty, call.ty_args[0], str(self.plain[kernel].attrs[PLAIN])
        )
        return relax.call_dps_packed(PREFIX + kernel.name_hint, tensors, call.ty_args[0])


def _problem(x: Any, y: Any, steps: str) -> Problem:
    """The layer, from the types of x and y and the kernel's attribute."""
    (m, n), k = y.shape.values, int(x.shape.values[1])
    return Problem(
        *("dense", int(m.value) if isinstance(m, tirx.IntImm) else None, int(n), k),
        *((1, 1), int(n) * k, 0, str(x.dtype)),
        epilogue=tuple(steps.split(",")) if steps else (),
        x_dtype=str(x.dtype),
        y_dtype=str(y.dtype),
    )

"""Results that pass between the launches of one kernel become outputs that the program places."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, s_tir, tirx


def lift_workspace(func: Any) -> tuple[Any, list[Any]]:
    """Turn a function's own global memory into parameters behind its outputs.

    Args:
        func: A scheduled tirx.PrimFunc.

    Returns:
        (function, the buffers that it takes more than before).
    """
    realize = func.body
    if not isinstance(realize, s_tir.SBlockRealize):
        return func, []
    root = realize.block
    lifted = [buffer for buffer in root.alloc_buffers if buffer.scope() in ("", "global")]
    if not lifted:
        return func, []
    kept = [buffer for buffer in root.alloc_buffers if buffer.scope() not in ("", "global")]
    block = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init, kept,
        root.match_buffers, root.annotations,
    )  # fmt: skip
    body = s_tir.SBlockRealize(realize.iter_values, realize.predicate, block)
    return tirx.PrimFunc([*func.params, *lifted], body, func.ret_type, attrs=func.attrs), lifted


def LiftWorkspace() -> Any:  # noqa: N802  # a pass, named like TVM's
    """The pass that does so for every function of a module and for its calls."""

    def run(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        lifted: dict[Any, tuple[Any, list[Any]]] = {}
        functions = dict(module.functions_items())
        for name, func in list(functions.items()):
            if isinstance(func, tirx.PrimFunc):
                new, buffers = lift_workspace(func)
                if buffers:
                    typed = _typed_name(name, new)
                    del functions[name]
                    functions[typed], lifted[name] = new, (typed, buffers)
        if not lifted:
            return module
        main = module.get_global_var("main")
        functions[main] = _Calls(lifted).visit_expr(functions[main])
        return tvm.IRModule(functions, attrs=module.attrs)

    return tvm.transform.module_pass(run, opt_level=0, name="bscompile.LiftWorkspace")


def _typed_name(name: Any, func: Any) -> Any:
    """A new variable of the old name: the type of a GlobalVar lists its function's parameters."""
    types = [relax.TensorType(param.shape, str(param.dtype)) for param in func.params]
    typed = tvm.ir.GlobalVar(name.name_hint)
    relax.expr._update_type(typed, relax.FuncType(types, relax.TupleType([]), False))
    return typed


@relax.expr_functor.mutator
class _Calls(relax.PyExprMutator):  # type: ignore[misc]
    """call_tir(f, args, out) -> call_tir(f', args, [out, workspace...])[0]."""

    def __init__(self, lifted: dict[Any, tuple[Any, list[Any]]]) -> None:
        super().__init__()
        self._lifted = lifted

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        op = call.op
        if not isinstance(op, tvm.ir.Op) or op.name != "relax.call_tir":
            return call
        if call.args[0] not in self._lifted:
            return call
        name, buffers = self._lifted[call.args[0]]
        old = call.ty_args[0]
        several = isinstance(old, relax.TupleType)
        wanted = list(old.fields) if several else [old]
        more = [relax.TensorType(buffer.shape, str(buffer.dtype)) for buffer in buffers]
        new = self.builder_.emit(relax.call_tir(name, call.args[1], [*wanted, *more]))
        fields = [relax.TupleGetItem(new, i) for i in range(len(wanted))]
        return relax.Tuple(fields) if several else fields[0]

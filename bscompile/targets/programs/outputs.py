"""Outputs that are somebody else's memory get memory of their own."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, te


def CopyAliasedOutputs() -> Any:  # noqa: N802  # a pass, named like TVM's
    """The pass that copies every output which is an input, a weight, a constant or given twice.

    The kernels of a program write outputs; nothing but a copy writes one that is only passed on.
    """

    def run(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        function = module["main"]
        copied = _Copied(module, function)
        module = copied.builder.get()
        module["main"] = copied.function
        return module

    return tvm.transform.module_pass(run, opt_level=0, name="bscompile.CopyAliasedOutputs")


class _Copied:
    def __init__(self, module: tvm.IRModule, function: relax.Function) -> None:
        self.builder = relax.BlockBuilder(module)
        self._values = {
            binding.var: binding.value
            for block in function.body.blocks
            for binding in block.bindings
        }
        self._taken: set[Any] = set(function.params)
        self._copies: list[Any] = []
        result = self._result(self._through(function.body.body))
        if not self._copies:
            self.function = function
            return
        output = self._bound(result)
        *blocks, last = function.body.blocks  # names of a dataflow block are known only inside it
        last = type(last)([*last.bindings, *self._copies])
        body = relax.SeqExpr([*blocks, last], output)
        self.function = relax.Function(
            function.params, body, function.ret_ty, function.is_pure, function.attrs
        )

    def _result(self, result: Any) -> Any:
        value = self._values.get(result, result) if isinstance(result, relax.Var) else result
        if not isinstance(value, relax.Tuple):
            return self._own(result)
        return relax.Tuple([self._own(field) for field in value.fields])

    def _own(self, expr: Any) -> Any:
        """``expr``, or a copy of it when its memory is not this output's alone."""
        source = self._source(expr)
        if isinstance(source, relax.Var) and source not in self._taken:
            self._taken.add(source)
            return expr
        if isinstance(expr, relax.Tuple):  # nested: none of the importer's models has one
            return relax.Tuple([self._own(field) for field in expr.fields])
        name = self.builder.add_func(_copy_function(expr), "copy")
        call = relax.call_tir(name, [expr], expr.ty)
        var = relax.Var("copied", expr.ty)
        self._copies.append(relax.VarBinding(var, call))
        return var

    def _source(self, expr: Any) -> Any:
        """What owns the memory: reshapes and renamings are looked through."""
        while isinstance(expr, relax.Var) and expr in self._values:
            value = self._values[expr]
            if isinstance(value, tvm.ir.Call) and getattr(value.op, "name", "") == "relax.reshape":
                expr = value.args[0]
            elif isinstance(value, relax.Var | tvm.ir.GenericConst):
                expr = value
            else:
                break
        return expr

    def _through(self, expr: Any) -> Any:
        """``expr``, without the names that it only goes by."""
        while isinstance(expr, relax.Var) and isinstance(self._values.get(expr), relax.Var):
            expr = self._values[expr]
        return expr

    def _bound(self, result: Any) -> Any:
        if isinstance(result, relax.Var):
            return result
        var = relax.Var("outputs", relax.TupleType([field.ty for field in result.fields]))
        self._copies.append(relax.VarBinding(var, result))
        return var


def _copy_function(expr: Any) -> Any:
    source = te.placeholder(expr.ty.shape.values, str(expr.ty.dtype), "source")
    copy = te.compute(source.shape, lambda *at: source(*at), "copy")
    return te.create_prim_func([source, copy]).without_attr("global_symbol")

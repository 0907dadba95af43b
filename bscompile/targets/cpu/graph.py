"""Replacing parts of a Relax function by generated code: what computes a value, who reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx

from bscompile.targets.cpu.code.tensors import Size, Tensor


class Graph:
    """The bindings of one function.

    Attributes:
        value: Variable -> the expression it is bound to.
        uses: Variable -> how many bindings read it; outputs count too.
    """

    def __init__(self, function: relax.Function) -> None:
        self.value: dict[Any, Any] = {}
        self.uses: Counter[Any] = Counter()
        self.readers: dict[Any, list[Any]] = {}
        for block in function.body.blocks:
            for binding in block.bindings:
                self.value[binding.var] = binding.value
                for var in relax.analysis.free_vars(binding.value):
                    self.uses[var] += 1
                    self.readers.setdefault(var, []).append(binding.var)
        for var in relax.analysis.free_vars(function.body.body):
            self.uses[var] += 1

    def call(self, expr: Any, *names: str) -> Any:
        """The call that computed ``expr`` when it is of one of these operators, else None."""
        value = self.value.get(expr) if isinstance(expr, relax.Var) else None
        if isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.Op):
            return value if value.op.name in names else None
        return None

    def only_reader(self, var: Any) -> Any:
        """The one variable computed from ``var``, None when there are several or none."""
        readers = self.readers.get(var, [])
        return readers[0] if len(readers) == 1 and self.uses[var] == 1 else None

    def through_transposes(self, expr: Any) -> tuple[Any, list[int]]:
        """(source, perm): ``expr`` = permute_dims(source, perm), over any chain of them."""
        perm = list(range(expr.ty.ndim))
        while (step := self._transpose(expr)) is not None:
            expr, order = step
            perm = [order[p] for p in perm]
        return expr, perm

    def _transpose(self, expr: Any) -> tuple[Any, list[int]] | None:
        """(x, order) where ``expr`` = permute_dims(x, order), in one of two spellings."""
        call = self.call(expr, "relax.permute_dims")
        if call is not None:
            order = call.attrs.axes
            rank = expr.ty.ndim
            return call.args[0], (
                list(range(rank))[::-1] if order is None else [int(a) for a in order]
            )
        # With the leading axes merged before and cut again after it: how torch writes Kᵀ where
        # the batch is symbolic.
        cut = self.call(expr, "relax.reshape")
        turn = None if cut is None else self.call(cut.args[0], "relax.permute_dims")
        merge = None if turn is None else self.call(turn.args[0], "relax.reshape")
        if turn is None or merge is None or turn.attrs.axes is None:
            return None
        order, source = [int(a) for a in turn.attrs.axes], merge.args[0]
        kept = len(order) - 1  # axes behind the merged ones
        lead = source.ty.ndim - kept
        if order[0] != 0 or lead < 1 or expr.ty.ndim != source.ty.ndim or kept < 1:
            return None
        before, after, middle = sizes(source), sizes(expr), sizes(turn.args[0])
        if before[lead:] != middle[1:] or after[:lead] != before[:lead]:
            return None
        whole = list(range(lead)) + [lead - 1 + a for a in order[1:]]
        return (source, whole) if after == tuple(before[a] for a in whole) else None


@dataclass(frozen=True, eq=False)
class Replacement:
    """Generated code for one variable.

    Attributes:
        name: Of the function.
        prim_func: Takes the arguments, then the result.
        arguments: Variables that are computed before this one.
    """

    name: str
    prim_func: Any
    arguments: tuple[Any, ...]


def replacing_pass(name: str, find: Callable[[Graph, Any], Replacement | None]) -> Any:
    """The pass that replaces every variable for which ``find`` knows better code.

    What is then read by nobody remains for dead code elimination.
    """

    def run(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        builder = relax.BlockBuilder(module)
        for gv, function in list(module.functions_items()):
            if isinstance(function, relax.Function):
                builder.update_func(gv, _replaced(builder, function, find))
        return builder.get()

    return tvm.transform.module_pass(run, opt_level=0, name=name)


def _replaced(
    builder: relax.BlockBuilder,
    function: relax.Function,
    find: Callable[[Graph, Any], Replacement | None],
) -> relax.Function:
    graph = Graph(function)
    blocks = []
    for block in function.body.blocks:
        bindings = []
        for binding in block.bindings:
            new = find(graph, binding.var) if isinstance(binding, relax.VarBinding) else None
            if new is not None:
                gv = builder.add_func(new.prim_func, new.name)
                call = relax.call_tir(gv, list(new.arguments), binding.var.ty)
                binding = relax.VarBinding(binding.var, call)
            bindings.append(binding)
        blocks.append(type(block)(bindings))
    body = relax.SeqExpr(blocks, function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor of the graph as generated code reads it.

    Attributes:
        expr: The Relax variable.
        tensor: Its axes and sizes.
    """

    expr: Any
    tensor: Tensor


def operand(name: str, expr: Any, letters: str, perm: list[int] | None = None) -> Operand:
    """``expr``, of which permute_dims(expr, perm) has the axes ``letters``."""
    order = perm or list(range(len(letters)))
    axes = [""] * len(letters)
    for letter, source in zip(letters, order, strict=True):
        axes[source] = letter
    return Operand(expr, Tensor(name, "".join(axes), sizes(expr)))


def sizes(expr: Any) -> tuple[Size, ...]:
    """Sizes for generated code; equal symbolic expressions get equal names."""
    return plain_sizes(expr.ty.shape.values)


def plain_sizes(shape: Iterable[Any]) -> tuple[Size, ...]:
    """A shape's sizes for generated code."""
    return tuple(int(d.value) if isinstance(d, tirx.IntImm) else str(d) for d in shape)


def is_tensor(expr: Any) -> bool:
    """Whether an expression is a tensor with known sizes."""
    return isinstance(expr.ty, relax.TensorType) and expr.ty.shape is not None


def is_float32(expr: Any) -> bool:
    """Whether an expression is a float32 tensor with known sizes."""
    return is_tensor(expr) and str(expr.ty.dtype) == "float32"


def scalar(expr: Any) -> float | None:
    """The number that a constant of one element holds."""
    if isinstance(expr, tvm.ir.GenericConst) and expr.value.numpy().size == 1:
        return float(expr.value.numpy().item())
    return None

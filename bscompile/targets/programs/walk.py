"""A planned module, read binding by binding, is a static program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, tirx

from bscompile.artifact.program import Buffer, Program, Step, Storage
from bscompile.targets.programs.refusal import refusal

if TYPE_CHECKING:
    from bscompile.errors import ModelError
    from bscompile.targets.lowering import Lowered

#: Calls that only say when memory is free; the plan has used that already.
_SILENT = ("relax.memory.kill_tensor", "relax.memory.kill_storage")


def make_program(planned: Lowered, target: str) -> tuple[Program, dict[str, Any]]:
    """The program that ``main`` is, and the kernels that it calls.

    Args:
        planned: As ``plan`` leaves it.
        target: Name of the target, for messages.

    Returns:
        (program, {name: tvm.tirx.PrimFunc}); a kernel takes its inputs, then its outputs.

    Raises:
        ModelError: something in the model is no kernel on memory of known size.
    """
    main = planned.module["main"]
    walk = _Walk(planned.module, target)
    count = len(planned.inputs)
    for i, param in enumerate(main.params):
        walk.argument(param, "input" if i < count else "param")
    for block in main.body.blocks:
        for binding in block.bindings:
            walk.bind(binding)
    program = Program(
        tuple(walk.storages),
        tuple(walk.buffers),
        tuple(walk.steps),
        tuple(walk.tensors(main.body.body)),
    )
    return program, walk.kernels


class _Walk:
    def __init__(self, module: tvm.IRModule, target: str) -> None:
        self.storages: list[Storage] = []
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []
        self.kernels: dict[str, Any] = {}
        self._module, self._target = module, target
        self._memory: dict[Any, int] = {}  # variable -> its storage
        self._known: dict[Any, Any] = {}  # variable -> index of a buffer, or a list of these

    def argument(self, param: Any, role: Any) -> None:
        """An input or parameter of main: a buffer with a storage of its own."""
        self._known[param] = self._buffer(None, 0, param.ty, role)

    def tensors(self, expr: Any) -> list[int]:
        """The buffers that an expression stands for, tuples flattened."""
        found = self._look(expr)
        return [found] if isinstance(found, int) else list(found)

    def bind(self, binding: Any) -> None:
        """Read one binding."""
        if not isinstance(binding, relax.VarBinding):
            raise self._refusal("a shape that is only known when it runs")
        value, var = binding.value, binding.var
        if isinstance(value, relax.Var | relax.Tuple | relax.TupleGetItem):
            if isinstance(value, relax.Var) and value in self._memory:
                self._memory[var] = self._memory[value]
            else:
                self._known[var] = self._look(value)
        elif isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            self._step(value)
        elif isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.Op):
            self._operator(var, value)
        elif isinstance(value, tvm.ir.Call) and isinstance(value.op, relax.ExternFunc):
            raise self._refusal(f"the library function {value.op.global_symbol}")
        elif isinstance(value, relax.If):
            raise self._refusal("a branch (If)")
        elif not isinstance(value, relax.ShapeExpr):
            raise self._refusal(f"a {type(value).__name__}")

    def _operator(self, var: Any, call: Any) -> None:
        name = call.op.name
        if name == "relax.memory.alloc_storage":
            size = self._size(call.args[0].values[0])
            self._memory[var] = self._storage(size, "scratch")
        elif name == "relax.memory.alloc_tensor":
            storage, offset = self._memory[call.args[0]], self._size(call.args[1])
            self._known[var] = self._buffer(storage, offset, var.ty, "scratch")
        elif name == "relax.builtin.alloc_tensor":
            self._known[var] = self._buffer(None, 0, var.ty, "scratch")
        elif name == "relax.reshape":
            source = self.buffers[self._look(call.args[0])]
            self._known[var] = self._buffer(source.storage, source.offset, var.ty, "scratch")
        elif name not in _SILENT:
            raise self._refusal(f"the operator {name.removeprefix('relax.')}")

    def _step(self, call: Any) -> None:
        name = call.op.name_hint
        func = self._module[call.op]
        if not isinstance(func, tirx.PrimFunc):
            raise self._refusal(f"the function {name}")
        if name not in self.kernels:
            self.kernels[name] = func.with_attr("global_symbol", name)
        if any(isinstance(argument, relax.ShapeExpr) for argument in call.args):
            raise self._refusal(f"a size of {name} that is only known when it runs")
        self.steps.append(Step(name, tuple(b for a in call.args for b in self.tensors(a))))

    def _look(self, expr: Any) -> Any:
        if isinstance(expr, relax.Tuple):
            return [buffer for field in expr.fields for buffer in self.tensors(field)]
        if isinstance(expr, relax.TupleGetItem):
            return self._look(expr.tuple_value)[expr.index]
        if expr not in self._known:
            raise self._refusal(f"a {type(expr).__name__} where a tensor is wanted")
        return self._known[expr]

    def _storage(self, size: int, role: Any) -> int:
        self.storages.append(Storage(size, role))
        return len(self.storages) - 1

    def _buffer(self, storage: int | None, offset: int, ty: Any, role: Any) -> int:
        """A buffer of a Relax type; without a storage given, in a new one of its size."""
        if ty.shape is None:
            raise self._refusal("a tensor of unknown rank")
        shape = tuple(self._size(length) for length in ty.shape.values)
        if storage is None:
            size = Buffer(0, 0, shape, str(ty.dtype)).bytes
            storage = self._storage(size, role)
        buffer = Buffer(storage, offset, shape, str(ty.dtype))
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _size(self, expr: Any) -> int:
        value = expr if isinstance(expr, tirx.IntImm | int) else getattr(expr, "value", expr)
        if isinstance(value, tirx.IntImm):
            value = value.value
        if not isinstance(value, int):
            raise self._refusal(f"the length {expr}, which is only known when it runs")
        return int(value)

    def _refusal(self, what: str) -> ModelError:
        return refusal(self._target, what)

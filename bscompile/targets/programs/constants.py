"""Constants that the graph still holds become parameters: a program has no others."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import tvm
from tvm import relax

Named = tuple[str, npt.NDArray[Any]]


def lift_constants(module: tvm.IRModule, taken: set[str]) -> tuple[tvm.IRModule, list[Named]]:
    """Give ``main`` one more parameter for each constant that its calls read.

    Args:
        module: After memory planning.
        taken: Names of the parameters that it has.

    Returns:
        (module, the new parameters in order); equal constants share one.
    """
    lifted = _Lift(taken)
    function = lifted.visit_expr(module["main"])
    params = [*function.params, *lifted.variables]
    module = tvm.IRModule(module.functions, attrs=module.attrs)
    module["main"] = relax.Function(
        params, function.body, function.ret_ty, function.is_pure, function.attrs
    )
    return module, lifted.arrays


@relax.expr_functor.mutator
class _Lift(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, taken: set[str]) -> None:
        super().__init__()
        self.variables: list[Any] = []
        self.arrays: list[Named] = []
        self._taken = set(taken)
        self._known: dict[tuple[str, tuple[int, ...], bytes], Any] = {}

    def visit_generic_const_(self, constant: Any) -> Any:
        if not isinstance(constant.value, tvm.runtime.Tensor):
            return constant  # a dtype or scope that a call names
        array = constant.value.numpy()
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._known:
            name = next(n for n in self._names() if n not in self._taken)
            self._taken.add(name)
            self._known[key] = relax.Var(name, relax.TensorType(array.shape, array.dtype.name))
            self.variables.append(self._known[key])
            self.arrays.append((name, array))
        return self._known[key]

    def _names(self) -> Any:
        count = len(self.variables)
        while True:
            yield f"constant.{count}"
            count += 1

"""The numeric suite that every target passes: cases, and what a target shows for each.

A target joins by one :class:`Adapter` in adapters.py, which knows how to run kernels there. All
kernels of a target are handed over at once, so that an adapter may link them into one program.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np

from bscompile import targets
from bscompile.dialect import TENSOR_STEPS, LinearOp, evaluate
from bscompile.dialect.precision import PRECISIONS, in_precision, kernel_weight
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets.base import Kernel, TargetContext, problem_of


@dataclass(frozen=True)
class Case:
    """One layer and how many rows it meets.

    Attributes:
        form: ``dense``, ``block_sparse`` or ``kronecker``.
        shape: Of W, [out, in].
        rows: Of x.
        block: Trained block.
        density: Share of live blocks; below 1 the first block row is empty.
        epilogue: Steps after the product.
        dtype: What W is stored and multiplied in.
        rank: Of a factorized layer.
        control: Whether a second kernel is run in which one weight is changed.
    """

    form: str
    shape: tuple[int, int]
    rows: int
    block: tuple[int, int] = (1, 1)
    density: float = 1.0
    epilogue: tuple[str, ...] = ()
    dtype: str = "float32"
    rank: int = 1
    control: bool = False

    def __str__(self) -> str:
        (n, k), (bh, bw) = self.shape, self.block
        steps = "+".join(self.epilogue) or "plain"
        return f"{self.form}-{n}x{k}-{bh}x{bw}-{self.density}-m{self.rows}-{steps}-{self.dtype}"


def _cases() -> tuple[Case, ...]:
    dense = [
        Case("dense", (65, 47), 9, epilogue=("bias", "relu"), control=True),
        Case("dense", (10, 84), 1),
        Case("dense", (1, 5), 3, epilogue=("hard_swish", "residual", "clip:-0.5:6.0")),
        Case("dense", (5, 3), 2, epilogue=("leaky_relu:0.1", "hard_sigmoid:0.2:0.5")),
        Case("dense", (130, 70), 33, epilogue=("bias", "gelu", "residual")),
    ]
    sparse = [
        # One less, exactly and one more than the block; empty rows; every density; one row.
        Case("block_sparse", (15, 31), 15, (16, 16), 0.6, ("bias",)),
        Case("block_sparse", (16, 32), 16, (16, 16), 1.0, ("bias", "residual", "relu")),
        Case("block_sparse", (17, 33), 17, (16, 16), 0.6, ("gelu_tanh",)),
        Case("block_sparse", (130, 97), 1, (16, 16), 0.4, ("bias",), control=True),
        Case("block_sparse", (65, 47), 18, (8, 8), 0.4, ("silu", "bias"), control=True),
        Case("block_sparse", (67, 50), 9, (4, 8), 0.5, ("bias", "gelu")),
        Case("block_sparse", (48, 64), 33, (8, 4), 0.1),
        Case("block_sparse", (96, 65), 7, (32, 32), 0.4, ("bias", "residual", "gelu_tanh")),
        Case("block_sparse", (64, 30), 5, (32, 1), 0.3),
        Case("block_sparse", (33, 64), 4, (1, 16), 0.3, ("bias",)),
        Case("block_sparse", (40, 30), 2, (12, 7), 0.0, ("bias",)),
        Case("block_sparse", (128, 64), 70, (64, 64), 0.5),
    ]
    factors = [
        Case("kronecker", (66, 50), 18, (6, 5), 0.4, ("bias",), rank=2, control=True),
        Case("kronecker", (64, 64), 1, (8, 8), 0.2, ("bias", "relu")),
        Case("kronecker", (48, 80), 33, (16, 16), 1.0, ("residual",), rank=3),
        Case("kronecker", (12, 15), 7, (4, 3), 0.0),
    ]
    whole = (*dense, *sparse, *factors)
    # Other dtypes meet each form once or twice: what differs is how weights are read. The longest
    # epilogue, whose code grows with the block, is theirs on a small layer.
    narrow = [
        dense[0], replace(dense[1], epilogue=("gelu_tanh",)), sparse[3], sparse[4], sparse[6],
        replace(sparse[7], epilogue=("bias", "residual")), sparse[10], *factors[:3],
    ]  # fmt: skip
    # Rows of x that begin at 16 bytes, as Hopper's tensor memory unit wants them: whole tiles and
    # cut ones, merged blocks, the last inputs covered twice, an empty row of blocks, no live block.
    aligned = [
        Case("dense", (70, 136), 33, epilogue=("bias", "gelu", "residual"), control=True),
        Case("block_sparse", (128, 128), 70, (64, 64), 0.6, ("bias", "relu"), control=True),
        Case("block_sparse", (202, 72), 1, (16, 16), 0.3, ("bias", "silu")),
        Case("block_sparse", (131, 104), 40, (32, 32), 0.5, ("residual",)),
        Case("block_sparse", (40, 64), 17, (64, 64), 0.0, ("bias",)),
    ]
    halves = tuple(
        replace(case, dtype=dtype) for dtype in ("float16", "bfloat16") for case in aligned
    )
    return (
        whole
        + halves
        + tuple(
            replace(case, dtype=dtype)
            for dtype in ("float16", "bfloat16", "int8", "tf32")
            for case in narrow
            if dtype not in ("int8", "tf32") or case.form != "kronecker"
        )
    )


CASES = _cases()


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel and what to call it with.

    Attributes:
        kernel: Of a template.
        inputs: x and the epilogue's tensors, in the order of the kernel's parameters.
        shape: Of y, float32.
    """

    kernel: Kernel
    inputs: tuple[Any, ...]
    shape: tuple[int, int]

    @property
    def arrays(self) -> list[Any]:
        """Every argument but y, in order."""
        x, *tensors = self.inputs
        return [x, *(array for _, array in self.kernel.operands), *tensors]


class Adapter(ABC):
    """How the kernels of one target are run here.

    Attributes:
        target: What users type.
        dtypes: That its templates take.
        forms: That they take.
    """

    target: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    forms: ClassVar[tuple[str, ...]] = ("dense", "block_sparse", "kronecker")

    @cached_property
    def context(self) -> TargetContext:
        """The target, resolved for this machine."""
        return targets.resolve(self.target, 2)

    @abstractmethod
    def missing(self) -> str:
        """Why kernels cannot be run here, and what to install; empty when they can."""

    @abstractmethod
    def run(self, calls: list[Call]) -> list[Any]:
        """y of every call, float32; what a kernel leaves unwritten is NaN."""

    def reference(self, template: str, op: LinearOp, x: Any, tensors: tuple[Any, ...]) -> Any:
        """What a template's kernel should give, in float64; ``op`` is in the case's dtype."""
        return evaluate(op, x, tensors)

    def rounding(self, template: str, config: Any, terms: int) -> tuple[str, int]:
        """(dtype, terms) of sums whose rounding a template's results may show."""
        return str(config.get("multiply", "float32")), terms


@dataclass(frozen=True, eq=False)
class Result:
    """What one template gave for a case.

    Attributes:
        template: Its name.
        got: y.
        wanted: In float64.
        changed: y with one weight changed; None where the case has no control.
        rounding: dtype and number of terms of the sums that its rounding is of.
    """

    template: str
    got: Any
    wanted: Any
    changed: Any
    rounding: tuple[str, int]


@dataclass(eq=False)
class _Planned:
    case: Case
    template: str
    wanted: Any
    rounding: tuple[str, int]
    calls: list[Call] = field(default_factory=list)


@cache
def results(adapter: Adapter) -> dict[Case, list[Result]]:
    """Everything that the target's templates give, all kernels run in one go."""
    planned: list[_Planned] = []
    for number, case in enumerate(CASES):
        if case.dtype in adapter.dtypes and case.form in adapter.forms:
            planned += _plan(adapter, case, number)
    outputs = iter(adapter.run([call for one in planned for call in one.calls]))
    found: dict[Case, list[Result]] = {}
    for one in planned:
        got = next(outputs)
        changed = next(outputs) if one.case.control else None
        result = Result(one.template, got, one.wanted, changed, one.rounding)
        found.setdefault(one.case, []).append(result)
    return found


def _plan(adapter: Adapter, case: Case, number: int) -> list[_Planned]:
    rng = np.random.default_rng(number)
    op = layer(case, rng)
    n, k = op.shape
    x = rng.standard_normal((case.rows, k)).astype(np.float32)
    shapes = {"bias": (n,), "residual": (case.rows, n)}
    tensors = tuple(
        rng.standard_normal(shapes[step]).astype(np.float32)
        for step in case.epilogue
        if step in TENSOR_STEPS
    )
    dtype = PRECISIONS[case.dtype]
    stored = in_precision(op, dtype)
    problem = problem_of(stored, case.rows, dtype)
    hardware = adapter.context.hardware.extended(case.dtype)
    planned = []
    for template in adapter.context.target.templates:
        space = template.space(problem, hardware)
        if not space:
            continue
        # The configuration that is chosen untuned, and in every second case any other.
        config = space[0] if number % 2 else space[5 * number % len(space)]
        ops = [stored, in_precision(_changed(op, rng), dtype)] if case.control else [stored]
        wanted = adapter.reference(template.name, stored, x, tensors)
        rounding = adapter.rounding(template.name, config, k * max(1, problem.rank))
        one = _Planned(case, template.name, wanted, rounding)
        for variant in ops:
            kernel = template.build(problem, kernel_weight(variant), config, hardware)
            one.calls.append(Call(kernel, (x, *tensors), (case.rows, n)))
        planned.append(one)
    return planned


def layer(case: Case, rng: np.random.Generator) -> LinearOp:
    """The case's layer in float32."""
    (n, k), (bh, bw) = case.shape, case.block
    if case.form == "kronecker":
        support = rng.random((n // bh, k // bw)) < case.density
        if case.density < 1:
            support[0] = False
        a = rng.standard_normal((case.rank, *support.shape)) * support
        b = rng.standard_normal((case.rank, bh, bw))
        weight: Any = KroneckerSum(a.astype(np.float32), b.astype(np.float32))
    else:
        live = rng.random((-(-n // bh), -(-k // bw))) < case.density
        if case.density < 1:
            live[0] = False
        mask = np.kron(live, np.ones(case.block, bool))[:n, :k]
        weight = (rng.standard_normal((n, k)) * mask).astype(np.float32)
        if case.form == "block_sparse":
            weight = BlockSparseMatrix.from_dense(weight, case.block)
    return LinearOp("layer", weight, case.epilogue)


def _changed(op: LinearOp, rng: np.random.Generator) -> LinearOp:
    """The layer with one of its weights greater by 8."""
    weight = op.weight
    if isinstance(weight, KroneckerSum):
        return op.with_weight(KroneckerSum(_raised(weight.a, rng), weight.b))
    if isinstance(weight, BlockSparseMatrix):
        values = _raised(weight.values, rng)
        return op.with_weight(
            BlockSparseMatrix(values, weight.indices, weight.indptr, weight.shape)
        )
    return op.with_weight(_raised(weight, rng))


def _raised(values: Any, rng: np.random.Generator) -> Any:
    copy = values.copy()
    copy.flat[rng.choice(np.flatnonzero(values))] += 8
    return copy

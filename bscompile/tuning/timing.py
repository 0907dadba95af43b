"""Builds one candidate, compares it with float64 and times it. Runs in the worker process."""

from __future__ import annotations

import fcntl
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.dialect import TENSOR_STEPS, LinearOp, Weight, evaluate
from bscompile.dialect.forms import in_form
from bscompile.dialect.precision import (
    PRECISIONS,
    Precision,
    form_precision,
    in_precision,
    kernel_weight,
    rounded,
)
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets.base import HardwareSpec, KernelTemplate, Target, problem_of
from bscompile.tuning.compiled import CompiledKernels
from bscompile.tuning.measurer import Measurement
from bscompile.tuning.record import OK, WRONG, Variant
from bscompile.tuning.runner import Runner, Session

Array = npt.NDArray[Any]

_ROUND_SECONDS = 2e-3  # of one timed round, so that the clock's grain does not count
#: A few steps of what x, the weight or y is rounded to, as a share of the largest value.
_STEPS = {"bfloat16": 2.0**-6, "float16": 2.0**-9, "tf32": 2.0**-9, "int8": 2 / 127}
_LOOKS = 5  # first, single calls, which decide whether more are worth their time


class Bench:
    """One layer on the bench: its input, its reference, and where kernels run.

    Args:
        op: The layer as it was recognised; a weight of booleans gets values where it is true.
        rows: Rows of x; None when symbolic, then ``typical_rows`` are run.
        dtype: What the weight is multiplied in.
        typical_rows: See ``rows``.
        target: Compiles the kernels.
        hardware: The machine that they are for.
        runner: Where they run.
        turns: A file whose lock workers of one tuning hold while they time; None for one worker.
        compiled: Kernels of layers before this one; None where there were none.
    """

    def __init__(
        self,
        op: LinearOp,
        rows: int | None,
        dtype: Precision,
        typical_rows: int,
        target: Target,
        hardware: HardwareSpec,
        runner: Runner,
        turns: Path | None = None,
        compiled: CompiledKernels | None = None,
    ) -> None:
        op = op.with_weight(_with_values(op.weight))
        self._op, self._rows, self._dtype = op, rows, dtype
        self._typical_rows, self._turns = typical_rows, turns
        self._target, self._hardware, self._runner = target, hardware, runner
        self._compiled = compiled or CompiledKernels()
        rng = np.random.default_rng(0)
        n, k = op.shape
        m = typical_rows if rows is None else rows
        self._x = _input(op, rng, m, k)
        self._tensors = tuple(
            rng.standard_normal((n,) if step == "bias" else (m, n)).astype(np.float32)
            for step in op.epilogue
            if step in TENSOR_STEPS
        )
        self._references: dict[Precision, Array] = {}
        self._shape = (m, n)

    def measure(
        self,
        variants: Sequence[tuple[Variant, KernelTemplate]],
        rounds: int,
        give_up: float | None,
    ) -> list[Measurement]:
        """Build and check each candidate, then time those that are right, in turns."""
        session = self._runner.connect(self._target.device)
        loaded = [self._load(variant, template, session) for variant, template in variants]
        with _turn(self._turns):
            errors = [
                kernel.error(self._wanted(variant.form))
                for kernel, (variant, _) in zip(loaded, variants, strict=True)
            ]
            right = [error <= self._tolerance for error in errors]
            times = _in_turns(loaded, right, rounds, give_up)
        return [
            Measurement(OK, tuple(seconds), error) if fine else _wrong(error)
            for seconds, error, fine in zip(times, errors, right, strict=True)
        ]

    def _wanted(self, form: str) -> Array:
        """What the layer means in the precision that a form of it is multiplied in."""
        dtype = form_precision(form, self._dtype)
        if dtype not in self._references:
            # A convolution's kernel sees windows as rows, like any other matmul.
            matmul, weight = replace(self._op, conv=None), self._op.weight
            if isinstance(weight, KroneckerSum) and dtype != form_precision("kronecker", dtype):
                matmul = matmul.with_weight(weight.to_block_sparse())
            self._references[dtype] = evaluate(in_precision(matmul, dtype), self._x, self._tensors)
        return self._references[dtype]

    @property
    def _tolerance(self) -> float:
        """Of the largest value: the error of a sum of k rounded products.

        Where x or a sum is rounded to fewer bits it is a few of their steps instead.
        """
        sums = 8 * float(np.finfo(np.float32).eps) * math.sqrt(max(1, self._op.shape[1]))
        return sums + _STEPS.get(self._dtype.name, 0.0)

    def _load(self, variant: Variant, template: KernelTemplate, session: Session) -> _Loaded:
        weight = in_form(self._op.weight, variant.form, variant.block)
        op = self._op.with_weight(weight)
        dtype = form_precision(op.form, self._dtype)
        problem = problem_of(op, self._rows, dtype, self._typical_rows)
        kernel = template.build(problem, kernel_weight(op), variant.config, self._hardware)
        executable = self._compiled.get(kernel.prim_func, self._target, self._hardware)
        module, device = session.load(executable)
        y = np.zeros(self._shape, problem.y_dtype)
        if y.dtype == np.float32:
            y[...] = np.nan
        x = rounded(self._x, PRECISIONS[kernel.x_dtype]) if kernel.x_dtype else self._x
        arrays = [x, *(array for _, array in kernel.operands), *self._tensors, y]
        import tvm

        held = [tvm.runtime.tensor(np.ascontiguousarray(a), device) for a in arrays]
        return _Loaded(module, device, held)


def _with_values(weight: Weight) -> Weight:
    """Values for a weight of which nothing is known but where it is not zero."""
    array = weight.values if isinstance(weight, BlockSparseMatrix) else weight
    if isinstance(array, KroneckerSum) or array.dtype != np.bool_:
        return weight
    rng = np.random.default_rng(1)
    filled = array * rng.standard_normal(array.shape, dtype=np.float32)
    return replace(weight, values=filled) if isinstance(weight, BlockSparseMatrix) else filled


def _input(op: LinearOp, rng: np.random.Generator, m: int, k: int) -> Array:
    """Random x [m, k] of the kind that the layer takes."""
    if op.quantization is None or op.quantization.x_dtype == "float32":
        return rng.standard_normal((m, k)).astype(np.float32)
    limits = np.iinfo(op.quantization.x_dtype)
    return rng.integers(limits.min, limits.max + 1, (m, k)).astype(limits.dtype)


@dataclass
class _Loaded:
    """A kernel on its device, with its arguments; the last one is y."""

    module: Any
    device: Any
    arguments: list[Any]

    def error(self, wanted: Array) -> float:
        """Run once; the largest difference over the largest value, infinite for NaN."""
        self.module["kernel"](*self.arguments)
        got = self.arguments[-1].numpy().astype(np.float64)
        scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
        worst = float(np.abs(got - wanted).max(initial=0.0))
        return worst / scale if math.isfinite(worst) else math.inf

    @property
    def exact(self) -> bool:
        """Whether it counts, and so says the same every time."""
        return bool(getattr(self.module, "exact", False))

    def times(self, number: int, repeat: int) -> list[float]:
        """Seconds of one call, from ``repeat`` runs of ``number`` calls."""
        timer = self.module.time_evaluator("kernel", self.device, number=number, repeat=repeat)
        return [max(float(time), 1e-9) for time in timer(*self.arguments).results]


def _in_turns(
    kernels: Sequence[_Loaded], right: Sequence[bool], rounds: int, give_up: float | None
) -> list[list[float]]:
    """Time those that are right: each looked at, then the hopeful ones round by round."""
    times = [
        kernel.times(number=1, repeat=1 if kernel.exact else _LOOKS) if fine else []
        for kernel, fine in zip(kernels, right, strict=True)
    ]
    hopeful = [
        i
        for i, seen in enumerate(times)
        if seen and min(seen) < (give_up or math.inf) and not kernels[i].exact
    ]
    numbers = {i: max(1, math.ceil(_ROUND_SECONDS / min(times[i]))) for i in hopeful}
    for i in hopeful:
        times[i] = []
    for _ in range(rounds):
        for i in hopeful:
            times[i] += kernels[i].times(number=numbers[i], repeat=1)
    return times


@contextmanager
def _turn(path: Path | None) -> Iterator[None]:
    """Hold the lock file, so that no other worker disturbs the clock."""
    if path is None:
        yield
        return
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wrong(error: float) -> Measurement:
    if not math.isfinite(error):
        return Measurement(WRONG, detail="gives values that are not numbers")
    detail = f"differs from float64 by {error:.2g} of the largest value"
    return Measurement(WRONG, error=error, detail=detail)

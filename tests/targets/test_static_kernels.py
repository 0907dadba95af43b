"""The kernels of every processor variant against float64, run on that processor or its emulator.

All cases of a variant are linked into one executable, which is run once for each vector length.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bscompile import targets
from bscompile.dialect import TENSOR_STEPS, LinearOp, evaluate
from bscompile.targets.base import problem_of
from tests.targets.static_running import needs, run_kernels
from tests.targets.test_kernels import block_sparse, epilogue_tensors, kronecker, numbers
from tests.tolerance import assert_close

#: Variant -> the processors to emulate; the kernels of the last two do not know their length.
EMULATED = {
    "aarch64": ["max"],
    "riscv64": ["rv64,v=true,vlen=256,vext_spec=v1.0"],
    "aarch64-sve": [f"max,sve-default-vector-length={n}" for n in (16, 32, 64)],
    "riscv64-vla": [f"rv64,v=true,vlen={n},vext_spec=v1.0" for n in (128, 256, 512)],
}
#: (form, weight, epilogue, rows): odd sizes, empty rows, all densities, batch 1.
CASES = [
    ("dense", (65, 47), ("bias", "relu"), 9),
    ("dense", (10, 84), (), 1),
    ("dense", (130, 70), ("bias", "gelu", "residual"), 33),
    ("block_sparse", ((130, 33), (16, 16), 0.3), ("bias",), 18),
    ("block_sparse", ((48, 64), (16, 16), 1.0), ("bias", "residual", "relu"), 1),
    ("block_sparse", ((96, 64), (32, 32), 0.4), (), 33),
    ("block_sparse", ((65, 47), (8, 8), 0.4), ("silu", "bias"), 16),
    ("block_sparse", ((67, 50), (4, 8), 0.5), ("bias", "gelu"), 9),
    ("block_sparse", ((40, 30), (12, 7), 0.0), ("bias",), 2),
    ("block_sparse", ((128, 64), (64, 64), 0.5), (), 7),
    ("kronecker", ((66, 50), (6, 5), 2, 0.4), ("bias",), 18),
    ("kronecker", ((64, 64), (8, 8), 1, 0.2), ("bias", "relu"), 1),
]


def layer(case, rng):
    form, weight, epilogue, _ = case
    if form == "dense":
        values = rng.standard_normal(weight).astype(np.float32)
    else:
        values = (block_sparse if form == "block_sparse" else kronecker)(rng, *weight)
    return LinearOp("layer", values, epilogue)


def cases_of(variant):
    """(case, template) for every template of the variant that takes the case."""
    target = targets.resolve(f"cpu:{variant}", 2).target
    return [
        (case, template)
        for case, template in itertools.product(CASES, target.templates)
        if template.name.startswith(case[0])  # not those of narrow numbers
        and not (template.name == "block_sparse_rows" and case[1][1][0] > 4)
        and not (template.name == "block_sparse_rows" and case[3] < 8)
    ]


@dataclass
class Call:
    """One kernel of a suite, with what it is called with and what it should answer."""

    op: LinearOp
    name: str
    pack: Callable[[LinearOp], Any]  # the kernel of a layer of the same pattern
    x: np.ndarray
    tensors: tuple[np.ndarray, ...]

    def arrays(self, op=None):
        packed = [np.ascontiguousarray(a) for _, a in self.pack(op or self.op).operands]
        return [self.x, *packed, *self.tensors]


@functools.cache
def suite(variant):
    """(calls, a function that runs them all): linked once."""
    rng = np.random.default_rng(0)
    hardware = targets.resolve(f"cpu:{variant}", 2).hardware
    calls = []
    for index, (case, template) in enumerate(cases_of(variant)):
        op, m = layer(case, rng), case[3]
        problem = problem_of(op, None if index % 3 == 0 else m, np.dtype(np.float32))
        space = template.space(problem, hardware)
        config = space[7 * index % len(space)]

        def pack(op, template=template, problem=problem, config=config):
            return template.build(problem, op.weight, config, hardware)

        x = rng.standard_normal((m, op.shape[1])).astype(np.float32)
        tensors = epilogue_tensors(rng, op.epilogue, m, op.shape[0])
        calls.append(Call(op, f"{template.name} {op.shape} m={problem.m}", pack, x, tensors))
    linked = [
        (c.pack(c.op).prim_func, c.arrays(), np.full((len(c.x), c.op.shape[0]), np.nan, np.float32))
        for c in calls
    ]
    return calls, run_kernels(variant, linked)


VARIANTS = [pytest.param(name, marks=needs(name.split("-")[0])) for name in EMULATED]
PROCESSORS = [
    pytest.param(name, cpu, marks=needs(name.split("-")[0]), id=f"{name}-{cpu}")
    for name, cpus in EMULATED.items()
    for cpu in cpus
]


@pytest.mark.parametrize(("variant", "cpu"), PROCESSORS)
def test_kernels(variant, cpu, monkeypatch):
    monkeypatch.setenv("QEMU_CPU", cpu)
    calls, run = suite(variant)
    for call, got in zip(calls, run([call.arrays() for call in calls]), strict=True):
        want = evaluate(call.op, call.x, call.tensors)
        assert_close(got, want, np.float32, call.op.shape[1], what=call.name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_counts(variant, monkeypatch):
    """A negative control: one weight changed changes the result, where no relu may hide it."""
    monkeypatch.setenv("QEMU_CPU", EMULATED[variant][-1])
    calls, run = suite(variant)
    before = run([call.arrays() for call in calls])
    rng, changed = np.random.default_rng(1), []
    for call in calls:
        values = numbers(call.op.weight)
        live = np.flatnonzero(values)
        touched = rng.choice(live) if live.size and "relu" not in call.op.epilogue else None
        if touched is not None:
            values.flat[touched] += 1
        changed.append((touched, call.arrays()))
        if touched is not None:
            values.flat[touched] -= 1
    after = run([arrays for _, arrays in changed])
    for call, (touched, _), b, a in zip(calls, changed, before, after, strict=True):
        assert (np.abs(a - b).max() > 1e-4) == (touched is not None), call.name
    assert sum(touched is not None for touched, _ in changed) > len(calls) / 2


def test_steps_are_covered():
    """The cases hold every kind of epilogue tensor."""
    steps = {step for case in CASES for step in case[2]}
    assert set(TENSOR_STEPS) <= steps

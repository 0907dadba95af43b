"""Buffers of kernels with an open number of rows are left as they are written."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bscompile import targets
from bscompile.dialect import LinearOp
from bscompile.targets.base import problem_of
from bscompile.targets.kernels.code import emit
from bscompile.targets.tir_passes import SIZED, TIR_PIPELINE
from tests.targets.test_kernels import block_sparse


def roomy(attributes):
    """y = x, through the first three of 49 numbers."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("f")
            T.func_attr({"global_symbol": "f", **attributes})
            x, y = (T.match_buffer(T.arg(name, T.handle()), (3,)) for name in "xy")
            with emit.opaque():
                between = T.sblock_alloc_buffer((49,))
                for source, to in ((x, between), (between, y)):
                    with T.serial(0, 3) as i:
                        T.buffer_store(to, source[i], [i])
        return tvm.IRModule({"f": builder.get()})


@pytest.mark.parametrize(("attributes", "kept"), [({SIZED: True}, True), ({}, False)])
def test_buffers_are_shrunk_unless_they_have_their_size(attributes, kept):
    lower, _, _ = tvm.tirx.get_tir_pipeline(TIR_PIPELINE)
    module = tvm.tirx.transform.BindTarget(tvm.target.Target("llvm").with_host("llvm"))(
        roomy(attributes)
    )
    assert ("(49,)" in lower(module).script()) == kept


@pytest.mark.parametrize("m", [None, 9])
def test_kernels_of_open_rows_have_their_size(m):
    context, rng = targets.resolve("cpu", 2), np.random.default_rng(0)
    op = LinearOp("layer", block_sparse(rng, (64, 48), (8, 8), 0.5))
    problem = problem_of(op, m, np.dtype(np.float32))
    for template in context.target.templates:
        for config in template.space(problem, context.hardware)[:1]:
            kernel = template.build(problem, op.weight, config, context.hardware)
            assert (SIZED in kernel.prim_func.attrs) == (m is None)

"""Kernels on vectors of unknown length: what their code generation once got wrong.

That they are right is shown by the numeric suite, under emulators at several lengths.
"""

import numpy as np
import pytest

from bscompile import targets
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import Problem


@pytest.mark.parametrize("split", ["outputs", "rows"])
def test_a_long_epilogue_is_compiled_in_several_tasks(split):
    """TVM lost the buffer between the scalable sums and the epilogue's fixed vectors."""
    import tvm

    context = targets.resolve("cpu:aarch64-sve", 4)
    rng = np.random.default_rng(0)
    live = np.kron(rng.random((4, 4)) < 0.5, np.ones((16, 16)))
    dense = (live * rng.standard_normal((64, 64))).astype(np.float32)
    weight = BlockSparseMatrix.from_dense(dense, (16, 16))
    problem = Problem("block_sparse", 17, 64, 64, (16, 16), weight.nnzb, 0, "float32", ("gelu",))
    (template,) = (t for t in context.target.templates if t.space(problem, context.hardware))
    config = {**template.space(problem, context.hardware)[0], "tasks": 4, "split": split}
    kernel = template.build(problem, weight, config, context.hardware)
    module = tvm.IRModule({"f": kernel.prim_func.with_attr("global_symbol", "f")})
    options = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+sve"]}
    compiled = tvm.compile(module, target=tvm.target.Target(options))
    assert "fmla" in compiled.mod.inspect_source("asm")

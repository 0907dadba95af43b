"""The instructions that a processor was chosen for are in the code that is made for it.

Code generation alone: neither a cross compiler nor an emulator is needed. That the code is right
is shown by the numeric suite, under emulators.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from bscompile import targets
from bscompile.dialect import LinearOp
from bscompile.dialect.precision import PRECISIONS, in_precision, kernel_weight
from bscompile.targets.base import problem_of
from tests.targets.test_kernels import block_sparse

_RVV = r"\bvsetvli|\bvsetivli"
#: (target, precision, template, patterns of instructions that its kernel must have)
CASES = [
    ("cpu:aarch64", "float32", "block_sparse_outputs", (r"\bfmla\s+v\d+\.4s",)),
    ("cpu:aarch64", "float32", "dense", (r"\bfmla\s+v\d+\.4s",)),
    ("cpu:aarch64", "int8", "narrow", (r"\b[su]?mlal?2?\s+v\d+\.4s",)),
    ("cpu:aarch64-dotprod", "int8", "narrow", (r"\bsdot\s+v\d+\.4s",)),
    ("cpu:aarch64-i8mm", "int8", "narrow", (r"\busdot\s+v\d+\.4s",)),
    ("cpu:aarch64-i8mm", "int8", "narrow_pairs", (r"\busmmla\s+v\d+\.4s",)),
    ("cpu:aarch64-i8mm", "bfloat16", "narrow", (r"\bbfdot\s+v\d+\.4s",)),
    ("cpu:aarch64-i8mm", "bfloat16", "narrow_pairs", (r"\bbfmmla\s+v\d+\.4s",)),
    ("cpu:aarch64-sve", "float32", "block_sparse_scalable", (r"\bfmla\s+z\d+\.s", r"\bld1w\b")),
    ("cpu:aarch64-sve", "float32", "dense_scalable", (r"\bfmla\s+z\d+\.s", r"\bcntw|\brdvl")),
    ("cpu:aarch64-sme", "float32", "block_sparse_sme", (r"\bfmopa\s+za\d", r"\bsmstart\b")),
    ("cpu:aarch64-sme", "float32", "dense_sme", (r"\bfmopa\s+za\d", r"\bsmstop\b")),
    ("cpu:riscv64", "float32", "block_sparse_outputs", (_RVV, r"\bvfmacc\.v[fv]")),
    ("cpu:riscv64", "int8", "narrow", (_RVV, r"\bvw?macc(su|us|u)?\.v[xv]|\bvwmul")),
    ("cpu:riscv64-vla", "float32", "block_sparse_scalable", (_RVV, r"\bvfmacc\.v[fv]", "vlenb")),
    ("cpu:riscv64-vla", "float32", "dense_scalable", (_RVV, r"\bvfmacc\.v[fv]")),
    ("cpu:riscv64-vla", "int8", "narrow", (_RVV, r"\bvw?macc(su|us|u)?\.v[xv]|\bvwmul")),
    ("hexagon", "int8", "hvx_block_sparse", (r"\bv\d+\.u?w \+= vrmpy\(",)),
    ("hexagon", "int8", "hvx_dense", (r"\bv\d+\.u?w \+= vrmpy\(",)),
]


def assembly_of(target, precision, name):
    """The text of the kernel that a template would choose for a layer of its form."""
    import tvm

    context = targets.resolve(target, 1)
    weight = block_sparse(np.random.default_rng(0), (64, 64), (16, 16), 0.5)
    dense = LinearOp("layer", weight.to_dense())
    sparse = LinearOp("layer", weight)
    template = context.target.template(name)
    for op in (
        in_precision(sparse, PRECISIONS[precision]),
        in_precision(dense, PRECISIONS[precision]),
    ):
        problem = problem_of(op, 16, PRECISIONS[precision])
        if space := template.space(problem, context.hardware):
            break
    kernel = template.build(problem, kernel_weight(op), space[0], context.hardware)
    module = tvm.IRModule({"kernel": kernel.prim_func.with_attr("global_symbol", "kernel")})
    code = context.target.build.keywords["code"](context.hardware)
    return tvm.compile(module, target=code).mod.inspect_source("asm")


@pytest.mark.parametrize(
    ("target", "precision", "template", "wanted"),
    [pytest.param(*case, id="-".join(case[:3])) for case in CASES],
)
def test_they_are_in_the_code(target, precision, template, wanted):
    text = assembly_of(target, precision, template)
    for pattern in wanted:
        assert re.search(pattern, text), f"no {pattern} in:\n{text}"


def test_a_machine_without_an_extension_has_none_of_it():
    """The same layer for plain NEON: what is asserted above is the variant's own."""
    text = assembly_of("cpu:aarch64", "int8", "narrow")
    assert not re.search(r"\b([us]*dot|usmmla|bfmmla|fmopa|smstart|z\d+\.s)\b", text)

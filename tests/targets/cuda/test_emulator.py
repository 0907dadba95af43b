"""The emulator finds what is wrong: each planted fault changes the result of a kernel."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import PRECISIONS, in_precision
from bscompile.targets.cuda.hardware import hardware
from tests.targets.cuda import adapter
from tests.targets.cuda.conftest import block_sparse, kernel_for
from tests.targets.cuda.emulator.translate import UnknownInstructionError, instruction, translate
from tests.targets.numeric_suite import Call
from tests.tolerance import assert_close

FAULTS = {
    "no wait for copies": (r'asm volatile\("cp\.async\.wait_group \d+;"[^;]*;', ""),
    "no barriers": (r"__syncthreads\(\);", ""),
    "rows of ldmatrix in another order": (r"\(\(\(\(int\)threadIdx\.x\) & 15\) \* 72\)", "0"),
    "sums not cleared": (r"= 0\.0;", "= 1.0;"),
    "wrong fragment": (r"\.bf16\.bf16\.", ".f16.f16."),
}


def run_tensor_cores(rng, edit=str, dtype="bfloat16"):
    """(y, wanted) of a tensor-core kernel whose source was edited."""
    weight = block_sparse(rng, (64, 256), (16, 16), 0.5)
    bias = rng.standard_normal(64).astype(np.float32)
    x = rng.standard_normal((40, 256)).astype(np.float32)
    machine = hardware("sm_90")
    kernel, _ = kernel_for(
        machine, "block_sparse_tensor_cores", weight, 40, dtype, tile=32, rows=32, stages=4
    )
    module = adapter.compile_module({"kernel": kernel.prim_func}, machine, edit)
    got = adapter.run(module["kernel"], Call(kernel, (x, bias), (40, 64)))
    op = in_precision(LinearOp("layer", weight, ("bias",)), PRECISIONS[dtype])
    return got, evaluate(op, x.astype(ml_dtypes.bfloat16) if dtype != "int8" else x, (bias,))


@pytest.mark.usefixtures("on_emulator")
def test_without_a_fault_the_kernel_is_right(rng):
    got, want = run_tensor_cores(rng)
    assert_close(got, want, np.float32, 256)


@pytest.mark.usefixtures("on_emulator")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_changes_the_result(rng, fault):
    def plant(source):
        changed, count = re.subn(*FAULTS[fault], str(source))
        assert count, "the source has no such place"
        return changed

    got, want = run_tensor_cores(rng, plant)
    with np.errstate(invalid="ignore"):
        assert not np.abs(got - want).max() < 1e-2


@pytest.mark.usefixtures("on_emulator")
def test_a_wrong_sign_of_int8_changes_the_result(rng):
    """And without the fault the same kernel is right."""
    got, want = run_tensor_cores(rng, dtype="int8")
    assert_close(got, want, np.float32, 256)
    wrong, _ = run_tensor_cores(rng, lambda text: str(text).replace(".u8.s8.", ".s8.s8."), "int8")
    assert np.abs(wrong - want).max() > 1e-2


def test_an_instruction_that_it_does_not_know_is_named():
    with pytest.raises(UnknownInstructionError, match="tcgen05"):
        translate('extern "C" __global__ void k() { asm volatile("tcgen05.mma;" : : "r"(1)); }')


def test_instructions_become_calls_with_their_operands():
    text = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0}, {%1};"
    assert instruction(text, ["d"], ["a"]) == "emu::mma_m16n8k16(true, &(d), a);"
    assert instruction("cp.async.wait_group 3;", [], []) == "emu::copy_wait(3);"

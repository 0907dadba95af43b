"""AMX kernels: run on emulated tile registers everywhere, on real ones where the CPU has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bscompile.dialect import LinearOp
from bscompile.dialect.precision import PRECISIONS, kernel_weight
from bscompile.dialect.quantization import Quantization
from bscompile.targets.base import problem_of
from bscompile.targets.kernels.amx import AmxTiles
from tests.targets.narrow_running import assembly, run_kernel, template, wanted
from tests.targets.test_kernels import block_sparse, epilogue_tensors
from tests.tolerance import assert_close

EMULATION = Path(__file__).parent / "amx_emulation.cc"
INSTRUCTIONS = {"bfloat16": "tdpbf16ps", "int8": "tdpbusd"}
CASES = [  # shape, block, rows, density
    ((64, 128), (16, 32), 64, 0.3),
    ((64, 128), (16, 64), 33, 0.4),
    ((67, 150), (16, 16), 16, 0.4),
    ((48, 96), (8, 8), 5, 0.0),
    ((40, 61), (4, 12), 1, 1.0),
    ((33, 200), (16, 128), 70, 0.6),
    ((7, 3), (5, 3), 17, 1.0),
]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def amx_machine():
    """The machine that ``cpu:amx`` names, with its tiles in use."""
    from bscompile.targets.cpu.hardware import hardware

    return hardware("amx", 2).extended("bfloat16", "int8")


def emulated(op, precision, m, config, folder):
    """(kernel, function as of ``load_kernel``) on emulated tiles; the rest of the code is real."""
    import tvm
    from tvm.script.ir_builder import tirx as T
    from tvm.support import cc

    from bscompile.targets.cpu.hardware import hardware, llvm_target
    from bscompile.targets.kernels.code import amx

    def call(name, *arguments):
        plain = [
            T.int32(int(a)) if getattr(a, "ty", None) is not None and str(a.ty) == "T.uint8" else a
            for a in arguments
        ]
        T.evaluate(T.call_extern("int32", f"emulated_{name}", *plain))

    unit = amx.INT8_TILES if precision == "int8" else amx.BFLOAT16_TILES
    kernel = AmxTiles().build_on(
        replace(unit, call=call),
        problem_of(op, m, PRECISIONS[precision]),
        kernel_weight(op),
        config,
        amx_machine(),
    )
    here = hardware("", 2).extended(precision)
    if precision == "bfloat16" and "avx512_bf16" not in here.features:
        pytest.skip("this CPU lacks avx512_bf16, which rounds x before the tiles see it")
    symbol = kernel.prim_func.attrs["global_symbol"]
    module = tvm.compile(tvm.IRModule({symbol: kernel.prim_func}), target=llvm_target(here))
    path = folder / "kernel.so"

    def link(output, objects, options=None):
        cc.create_shared(output, [*objects, str(EMULATION)], options or [])

    module.export_library(str(path), fcompile=link)
    compiled = tvm.runtime.load_module(str(path))[symbol]
    operands = [tvm.runtime.tensor(np.ascontiguousarray(array)) for _, array in kernel.operands]

    def run(x, tensors, shape, y_dtype=np.float32):
        y = tvm.runtime.tensor(np.zeros(shape, y_dtype))
        compiled(*map(tvm.runtime.tensor, (x,)), *operands, *map(tvm.runtime.tensor, tensors), y)
        return y.numpy()

    return run


def layer(rng, shape, block, density, form="block_sparse", epilogue=("bias",)):
    weight = block_sparse(rng, shape, block, density)
    return LinearOp("layer", weight if form == "block_sparse" else weight.to_dense(), epilogue)


def check(run, op, precision, m, rng):
    n, k = op.shape
    x = rng.standard_normal((m, k)).astype(np.float32)
    tensors = epilogue_tensors(rng, op.epilogue, m, n)
    want = wanted(op, precision, x, tensors, native=True)
    assert_close(run(x, tensors, (m, n)), want, np.float32, k, what=f"{precision} {op.shape} {m}")


@pytest.mark.parametrize("precision", INSTRUCTIONS)
@pytest.mark.parametrize(("shape", "block", "m", "density"), CASES)
def test_products(precision, shape, block, m, density, rng, tmp_path):
    form = "dense" if density == 1.0 else "block_sparse"
    op = layer(rng, shape, block, density, form, ("bias", "gelu"))
    space = AmxTiles().space(problem_of(op, m, PRECISIONS[precision]), amx_machine())
    run = emulated(op, precision, m, space[m % len(space)], tmp_path)
    check(run, op, precision, m, rng)


@pytest.mark.parametrize("precision", INSTRUCTIONS)
def test_symbolic_rows(precision, rng, tmp_path):
    op = layer(rng, (67, 150), (16, 32), 0.4, epilogue=("bias", "residual"))
    config = {"rows": 2, "tasks": 2, "split": "rows"}
    run = emulated(op, precision, None, config, tmp_path)
    for m in (1, 2, 16, 33, 64, 70):
        check(run, op, precision, m, rng)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_integer_sums_are_exact(dtype, rng, tmp_path):
    matrix = block_sparse(rng, (40, 150), (16, 64), 0.6)
    numbers = (rng.integers(-127, 128, matrix.values.shape) * (matrix.values != 0)).astype(np.int8)
    weight = type(matrix)(numbers, matrix.indices, matrix.indptr, matrix.shape)
    ends = Quantization(np.ones(40, np.float32), "static", dtype, dtype, x_zero=5)
    op = LinearOp("layer", weight, quantization=ends)
    config = {"rows": 4, "tasks": 2, "split": "outputs"}
    limits = np.iinfo(dtype)
    x = rng.integers(limits.min, limits.max + 1, (37, 150)).astype(dtype)
    sums = (x.astype(np.int64) - 5) @ weight.to_dense().astype(np.int64).T
    assert np.abs(sums).max() < 2**24  # float32 holds them
    got = emulated(op, "int8", 37, config, tmp_path)(x, (), (37, 40))
    np.testing.assert_array_equal(got, sums)


@pytest.mark.parametrize("precision", INSTRUCTIONS)
def test_the_instructions_are_used(precision, rng):
    op = layer(rng, (64, 128), (16, 64), 0.5)
    machine = amx_machine()
    problem = problem_of(op, 128, PRECISIONS[precision])
    config = {"rows": 4, "tasks": 2, "split": "outputs"}
    code = assembly(AmxTiles().build(problem, op.weight, config, machine), machine)
    assert code.count(INSTRUCTIONS[precision]) % 4 == 0
    for name in (
        INSTRUCTIONS[precision],
        "ldtilecfg",
        "tileloadd",
        "tilezero",
        "tilestored",
        "tilerelease",
    ):
        assert name in code
    assert "syscall" in code


def test_tiles_are_the_first_choice_where_there_is_work(rng):
    """And no choice at all without them."""
    op = layer(rng, (256, 512), (16, 32), 0.5)
    problem = problem_of(op, 128, PRECISIONS["bfloat16"])
    machine = amx_machine()
    costs = {
        name: template(name).cost(problem, template(name).space(problem, machine)[0], machine)
        for name in ("amx", "narrow", "block_sparse_outputs")
    }
    assert min(costs, key=costs.__getitem__) == "amx"
    plain = replace(machine, features=tuple(f for f in machine.features if "amx" not in f))
    assert AmxTiles().space(problem, plain) == ()


@pytest.mark.parametrize("precision", INSTRUCTIONS)
def test_on_real_tiles(precision, rng):
    from bscompile.devices.cpu import cpu_features

    machine = amx_machine()
    if missing := sorted(set(machine.features) - cpu_features()):
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    op = layer(rng, (64, 128), (16, 64), 0.5)
    problem = problem_of(op, 33, PRECISIONS[precision])
    config = {"rows": 2, "tasks": 2, "split": "outputs"}
    kernel = AmxTiles().build(problem, op.weight, config, machine)
    check(lambda *a: run_kernel(kernel, machine, *a), op, precision, 33, rng)

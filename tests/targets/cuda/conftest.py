"""What the CUDA tests share: kernels of one layer, and the compiler or emulator they need."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from bscompile.dialect import LinearOp
from bscompile.dialect.precision import PRECISIONS, in_precision, kernel_weight
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import problem_of
from tests.targets.cuda import adapter, emulator


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def module_patches():
    with pytest.MonkeyPatch.context() as patches:
        yield patches


@pytest.fixture(scope="module")
def on_emulator(module_patches):
    """Whole models are compiled for the emulator; skipped where a GPU would run them."""
    if not adapter.emulated():
        pytest.skip("a GPU is here; the emulator's driver cannot be loaded beside its own")
    emulator.start()
    build = importlib.import_module("bscompile.targets.cuda.build")
    module_patches.setattr(
        build, "compile_source", lambda source, _: emulator.compile_source(source)
    )


@pytest.fixture(scope="session")
def cuda_compiler():
    """What compiles; skips where nothing does."""
    from bscompile.targets.cuda.compile import INSTALL, compiler

    found = compiler()
    if found is None:
        pytest.skip(f"no CUDA compiler is here: {INSTALL}; the emulator runs the same source")
    return found


def block_sparse(rng, shape, block, density):
    """A block-sparse weight whose first block row is empty."""
    n, k = shape
    live = rng.random((-(-n // block[0]), -(-k // block[1]))) < density
    live[0] = False
    mask = np.kron(live, np.ones(block, bool))[:n, :k]
    weight = (rng.standard_normal(shape) * mask / np.sqrt(k)).astype(np.float32)
    return BlockSparseMatrix.from_dense(weight, block)


def kernel_for(hardware, template, weight, m, dtype, epilogue=("bias",), **wanted):
    """(kernel, problem) of a named template, in the first configuration that has ``wanted``."""
    from bscompile.targets.cuda.templates import TEMPLATES

    op = in_precision(LinearOp("layer", weight, epilogue), PRECISIONS[dtype])
    problem = problem_of(op, m, PRECISIONS[dtype])
    chosen = next(one for one in TEMPLATES if one.name == template)
    config = next(
        config
        for config in chosen.space(problem, hardware)
        if all(config.get(key) == value for key, value in wanted.items())
    )
    return chosen.build(problem, kernel_weight(op), config, hardware), problem

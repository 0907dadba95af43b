"""A small machine on paper, small layers, and a measurer whose times are a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bscompile.dialect import LinearOp
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from bscompile.targets import get_target
from bscompile.targets.base import HardwareSpec, TargetContext
from bscompile.tuning.measurer import Layer, Measurement, Measurer
from bscompile.tuning.record import OK


@pytest.fixture
def hardware():
    return HardwareSpec(
        name="paper",
        isa="avx2",
        features=("avx2",),
        cores=2,
        peak_gflops={"float32": 50.0},
        memory_gbps=20.0,
        cache_bytes=(32 << 10, 1 << 20),
        cache_gbps=(100.0, 50.0),
        vector_bytes=32,
        launch_seconds=2e-6,
    )


@pytest.fixture
def context(hardware):
    return TargetContext(get_target("cpu"), "avx2", hardware)


def block_sparse(seed=0, shape=(64, 48), block=(8, 8), density=0.3):
    rng = np.random.default_rng(seed)
    mask = rng.random((shape[0] // block[0], shape[1] // block[1])) < density
    mask.flat[seed % mask.size] = True
    weight = rng.standard_normal(shape) * np.kron(mask, np.ones(block))
    return BlockSparseMatrix.from_dense(weight.astype(np.float32), block)


def kronecker(seed=0, rank=2):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rank, 8, 6)) * (rng.random((8, 6)) < 0.3)
    a[:, 0, 0] = 1
    return KroneckerSum(a.astype(np.float32), rng.standard_normal((rank, 8, 8)).astype(np.float32))


def layer_of(weight, context, rows=16, name="layer", epilogue=("bias",)):
    return Layer(LinearOp(name, weight, epilogue), rows, np.dtype(np.float32), context)


def with_templates(context, *templates):
    """The context with further kernel templates, first."""
    target = replace(context.target, templates=(*templates, *context.target.templates))
    return replace(context, target=target)


class TableMeasurer(Measurer):
    """Answers from a function of the variant, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.opened = []
        self.closed = False

    def open(self, layer):
        self.opened.append(layer)

    def measure(self, variants, *, rounds=5, give_up=None):
        results = []
        for variant in variants:
            self.asked.append((variant, rounds))
            answer = self.answer(variant)
            results.append(
                answer
                if isinstance(answer, Measurement)
                else Measurement(OK, (answer,) * rounds, 1e-7)
            )
        return results

    def abort(self):
        self.closed = True

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _own_data_folder(monkeypatch, tmp_path_factory):
    """Nobody's own tuning database takes part in a test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))

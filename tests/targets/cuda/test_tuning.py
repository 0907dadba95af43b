"""Candidates of one layer, checked and timed the way that ``tune`` does, on the emulated device."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.dialect import LinearOp
from bscompile.dialect.precision import PRECISIONS
from bscompile.targets.base import problem_of
from bscompile.targets.cuda import TARGET
from bscompile.targets.cuda.hardware import hardware
from bscompile.tuning.record import OK, Variant
from bscompile.tuning.runner import LocalRunner
from bscompile.tuning.timing import Bench
from tests.targets.cuda.conftest import block_sparse


@pytest.mark.usefixtures("on_emulator")
def test_candidates_are_right_and_have_a_time(rng):
    op = LinearOp("layer", block_sparse(rng, (48, 64), (16, 16), 0.5), ("bias",))
    machine, dtype = hardware("sm_90"), PRECISIONS["bfloat16"]
    templates = [TARGET.template(f"block_sparse_{kind}") for kind in ("tensor_cores", "few_rows")]
    problem = problem_of(op, 9, dtype)
    candidates = [
        (
            Variant("block_sparse", (16, 16), template.name, template.space(problem, machine)[0]),
            template,
        )
        for template in templates
    ]
    bench = Bench(op, 9, dtype, 128, TARGET, machine, LocalRunner())
    for measured in bench.measure(candidates, rounds=1, give_up=None):
        assert measured.status == OK
        assert np.isfinite(measured.seconds).all()
